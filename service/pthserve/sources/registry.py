"""Registry: a client for manifests and blobs of an OCI registry, by the distribution specification.

Credentials are those of docker and podman: a `config.json` in $DOCKER_CONFIG or ~/.docker, or the file that
$REGISTRY_AUTH_FILE names, with what `docker login` writes, or with the credential helpers that it names.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from pthserve.addresses import is_loopback
from pthserve.errors import WeightsError
from pthserve.sources import web
from pthserve.sources.reference import Reference
from pthserve.sources.transfer import Interrupted, RemoteFile

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MAX_MANIFEST = 4 * 2**20
"""Bytes; what registries accept."""

_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_HELPER = re.compile(r"[A-Za-z0-9_.-]+")


class Registry:
    """The repository of `reference` in its registry. One thread uses it."""

    def __init__(self, reference: Reference, *, push: bool = False) -> None:
        self.reference = reference
        host = httpx.URL(f"https://{reference.host}").host
        scheme = "http" if is_loopback(host) else "https"
        self.root = f"{scheme}://{reference.host}/v2/{reference.path}"
        self._scope = f"repository:{reference.path}:{'pull,push' if push else 'pull'}"
        self._client = web.client(self.root)
        self._authorization: str | None = None

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def manifest(self, name: str) -> tuple[bytes, str]:
        """The manifest or index that a tag or `sha256:...` names, and its media type.

        Raises:
            WeightsError: there is none, or it is not the one of that digest.
            Interrupted: another attempt may succeed.
        """
        url = f"{self.root}/manifests/{name}"
        headers = {"Accept": ", ".join((*MANIFESTS, *INDEXES))}
        with web.errors(url), self.stream("GET", url, headers=headers) as reply:
            if reply.status_code == httpx.codes.NOT_FOUND:
                raise WeightsError(f"{self.reference}: there is no such artefact in the registry")
            self.check(reply)
            content = b""
            for block in reply.iter_raw():
                content += block
                if len(content) > MAX_MANIFEST:
                    raise WeightsError(f"{self.reference}: its manifest is larger than {MAX_MANIFEST} bytes")
            kind = reply.headers.get("Content-Type", "").partition(";")[0]
        if name.startswith("sha256:") and (found := sha256(content)) != name:
            raise WeightsError(f"{self.reference}: the registry sent another manifest, of {found}")
        return content, kind

    def blob(self, descriptor: Mapping[str, Any], name: str) -> RemoteFile:
        """The blob of a descriptor, as a file called `name`."""
        digest, size = str(descriptor.get("digest", "")), descriptor.get("size")
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest) or not isinstance(size, int):
            raise WeightsError(f"{self.reference}: a layer has no SHA-256, or no size")
        opened = partial(web.open_file, self.stream, f"{self.root}/blobs/{digest}")
        hexadecimal = digest.removeprefix("sha256:")
        address = f"{self.reference} (layer {digest[:19]})"
        return RemoteFile(name, address, opened, size=size, sha256=hexadecimal, version=digest)

    @contextmanager
    def stream(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Iterator[httpx.Response]:
        """Send a request, with credentials if the registry asks for them."""
        for last in (False, True):
            sent = dict(headers or {})
            if self._authorization and same_registry(self.root, url):
                sent["Authorization"] = self._authorization
            with self._client.stream(method, url, headers=sent, **options) as reply:
                if reply.status_code == httpx.codes.UNAUTHORIZED and not last and self._authorize(reply):
                    continue
                yield reply
                return

    def send(self, method: str, url: str, **options: Any) -> httpx.Response:
        """The whole answer to a request; raises Interrupted where another attempt may succeed."""
        with web.errors(url), self.stream(method, url, **options) as reply:
            reply.read()
        if reply.status_code >= 500 or reply.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise Interrupted(f"the registry responds with {reply.status_code} {reply.reason_phrase}")
        return reply

    def check(self, reply: httpx.Response) -> None:
        """Raise Interrupted or WeightsError unless the registry has done what it was asked for."""
        if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise WeightsError(
                f"{self.reference}: the registry refuses access ({reply.status_code}); log in with "
                "`docker login`, or name a folder with a config.json in DOCKER_CONFIG"
            )
        if not reply.is_success:
            web.check(reply)

    def _authorize(self, reply: httpx.Response) -> bool:
        """Get the requested credentials; return False if there are none, or they were sent already."""
        scheme, _, rest = reply.headers.get("WWW-Authenticate", "").partition(" ")
        known = credentials(self.reference.host)
        basic = f"Basic {base64.b64encode(':'.join(known).encode()).decode()}" if known else None
        before = self._authorization
        if scheme.lower() == "basic":
            self._authorization = basic
        elif scheme.lower() == "bearer":
            self._authorization = self._token(dict(_PARAMETER.findall(rest)), basic)
        return self._authorization is not None and self._authorization != before

    def _token(self, asked: Mapping[str, str], basic: str | None) -> str | None:
        """The header with a token of the server that the registry names."""
        realm = httpx.URL(asked.get("realm", ""))
        if realm.scheme != "https" and not is_loopback(realm.host):
            raise WeightsError(f"{self.reference}: the registry's token server is without TLS")
        query = {"scope": self._scope} | ({"service": asked["service"]} if "service" in asked else {})
        with web.errors(str(realm)):
            reply = self._client.get(
                realm.copy_merge_params(query), headers={"Authorization": basic} if basic else {}
            )
        if not reply.is_success:
            return None
        try:
            values = reply.json()
            return f"Bearer {values.get('token') or values['access_token']}"
        except (ValueError, KeyError, AttributeError):
            return None


def same_registry(root: str, url: str) -> bool:
    """Whether credentials for the registry of `root` may be sent to `url`."""
    return web.same_host(httpx.URL(root), httpx.URL(url))


def sha256(content: bytes) -> str:
    """The digest of `content` as registries write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def credentials(host: str) -> tuple[str, str] | None:
    """User name and password for a registry, where docker or podman know them.

    Raises:
        WeightsError: their file cannot be read, or a credential helper fails.
    """
    file = _credentials_file()
    if not file.exists():
        return None
    try:
        values = json.loads(file.read_text("utf-8"))
        helper = values.get("credHelpers", {}).get(host) or values.get("credsStore")
        entry = values.get("auths", {}).get(host, {})
        if entry.get("auth"):
            user, colon, password = base64.b64decode(entry["auth"]).decode().partition(":")
            if colon:
                return user, password
        if entry.get("username") and entry.get("password"):
            return entry["username"], entry["password"]
    except (OSError, ValueError, AttributeError, TypeError):  # whose messages may repeat what is secret
        raise WeightsError(f"{file}: is not a file of registry credentials that can be read") from None
    return _helped(str(helper), host) if helper else None


def _credentials_file() -> Path:
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return Path(named)
    folder = os.environ.get("DOCKER_CONFIG")
    try:
        return (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    except RuntimeError:  # a user without a home
        return Path("/nonexistent")


def _helped(helper: str, host: str) -> tuple[str, str] | None:
    """What the program `docker-credential-HELPER` knows."""
    if not _HELPER.fullmatch(helper):
        raise WeightsError("the credential helper that the registry credentials name is not a program's name")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(  # noqa: S603
            [program, "get"], input=host, capture_output=True, text=True, timeout=30, check=False
        )
        values = json.loads(done.stdout) if done.returncode == 0 else {}
        return (values["Username"], values["Secret"]) if values.get("Secret") else None
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, AttributeError):
        raise WeightsError(f"{program}: the credential helper failed") from None
