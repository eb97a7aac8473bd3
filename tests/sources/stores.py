"""Object stores of others on this machine: each with an empty bucket `models`, and its credentials."""

import base64
import hashlib
import hmac
import json
import shutil
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pthserve.sources.object_stores import connected
from pthserve.sources.reference import parse

from .servers import program, running, s3

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SECRET = "secretpassword"
"""In each credential that may be any text, so that one search finds all."""


@dataclass(frozen=True)
class Store:
    """A bucket of an object store.

    environment: its endpoint and the credentials for it. wrong: credentials that it refuses, in the same
    variables. secrets: what of both nobody may see.
    """

    scheme: str
    environment: Mapping[str, str]
    wrong: Mapping[str, str]
    secrets: tuple[str, ...] = (SECRET,)

    def address(self, key: str) -> str:
        return f"{self.scheme}://models/{key}"

    def connected(self) -> "ObjectStore":
        reference = parse(self.address(""))
        assert reference
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            return connected(reference)

    def put(self, key: str, content: bytes) -> None:
        self._write({key: content})

    def put_folder(self, key: str, folder: Path) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        self._write({f"{key}/{file.relative_to(folder).as_posix()}": file.read_bytes() for file in files})

    def _write(self, objects: Mapping[str, bytes]) -> None:
        import obstore

        store = self.connected()
        for key, content in objects.items():
            obstore.put(store, key, content, use_multipart=False)

    def clear(self) -> None:
        """Delete all objects."""
        import obstore

        store = self.connected()
        obstore.delete(store, [one["path"] for one in obstore.list(store).collect()])


@dataclass(frozen=True)
class FolderStore(Store):
    """A bucket of the files in `folder`, which its server reads again on request, but does not write."""

    folder: Path = Path()

    def _write(self, objects: Mapping[str, bytes]) -> None:
        for key, content in objects.items():
            (self.folder / key).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / key).write_bytes(content)
        self._read_again()

    def clear(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self._read_again()

    def _read_again(self) -> None:
        httpx.put(f"{self.environment['GOOGLE_BASE_URL']}/_internal/reseed").raise_for_status()


@contextmanager
def amazon(folder: Path) -> Iterator[Store]:
    """rclone's S3 server of the folders in `folder/s3`."""
    (folder / "s3/models").mkdir(parents=True)
    with s3(folder / "s3", folder / "s3.log", "key", SECRET) as endpoint:
        environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        yield Store("s3", environment, {"AWS_SECRET_ACCESS_KEY": f"{SECRET}-wrong"})


@contextmanager
def google(folder: Path) -> Iterator[Store]:
    """fake-gcs-server, which answers to clients with a token that its service account has signed."""
    bucket = folder / "gs/models"
    bucket.mkdir(parents=True)
    private = {name: _service_account(folder, name) for name in ("right", "wrong")}
    command = (program("fake-gcs-server"), bucket.parent, folder / "right.pub")
    with running(command, r"listening on (\S+)", folder / "gs.log") as found:
        environment = {
            "GOOGLE_BASE_URL": f"http://{found[1]}",
            "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "right.json"),
        }
        # The lines of the keys, and what each token begins with: {"
        secrets = (*(line for key in private.values() for line in key.splitlines()[1:-1]), "eyJ")
        wrong = {"GOOGLE_APPLICATION_CREDENTIALS": str(folder / "wrong.json")}
        yield FolderStore("gs", environment, wrong, secrets, bucket)


def _service_account(folder: Path, name: str) -> str:
    """Write the files of a service account, `NAME.json` and `NAME.pub`, and return its private key."""
    key = rsa.generate_private_key(65537, 2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {
        "type": "service_account",
        "private_key": private,
        "private_key_id": name,
        "client_email": f"{name}@project.example",
        "client_id": "1",
    }
    (folder / f"{name}.json").write_text(json.dumps(account))
    (folder / f"{name}.pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private


@contextmanager
def azure(folder: Path, authority: Path | None = None) -> Iterator[Store]:
    """Azurite; with the certificate of `authority`, whose server's is beside it, by TLS and with tokens."""
    key, wrong = f"{SECRET}00", f"{SECRET}11"  # base64
    command: list[str | Path] = [
        *("env", f"AZURITE_ACCOUNTS=account:{key}", program("azurite").with_name("azurite-blob")),
        *("--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry"),
    ]
    if authority:
        own = authority.with_name("server.pem")
        command += ["--oauth", "basic", "--cert", own, "--key", own]
    with running(command, r"listens on (https?://\S+)", folder / "az.log") as found:
        endpoint = f"{found[1]}/account"
        _create_container(endpoint, key, authority)
        environment = {
            "AZURE_STORAGE_ENDPOINT": endpoint,
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
            "AZURE_STORAGE_ACCOUNT_KEY": key,
        }
        if authority:
            environment["SSL_CERT_FILE"] = str(authority)
        yield Store("az", environment, {"AZURE_STORAGE_ACCOUNT_KEY": wrong})


def _create_container(endpoint: str, key: str, authority: Path | None) -> None:
    """Create the container `models`, with a request signed as Azure's "Shared Key" says."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = [f"{name}:{value}" for name, value in headers.items()]
    signed = "\n".join(["PUT", *[""] * 11, *lines, "/account/account/models", "restype:container"])
    digest = hmac.digest(base64.b64decode(key), signed.encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey account:{base64.b64encode(digest).decode()}"
    verify = ssl.create_default_context(cafile=authority) if authority else True
    httpx.put(f"{endpoint}/models?restype=container", headers=headers, verify=verify).raise_for_status()


STORES = (amazon, google, azure)
