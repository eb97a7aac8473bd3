"""Identities of workloads: object stores whose credentials a token service hands out, each on this machine.

As in a cloud, a pod has a token that says who it is, in a file or by the machine that it asks from. The token
service answers with credentials for a while, and the store's own server checks them.
"""

import base64
import datetime
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from .keys import authority
from .servers import Handler, answering
from .stores import SECRET, Store, amazon, azure, google

TOKEN = f"{SECRET}-token"
"""Of the pod: what its platform gives it, and the token service accepts."""
REASON = "Not authorized to have this identity"
"""What a token service says as it refuses."""
POOR = "poor"
"""In the name of a role or an account that the token service knows, and the store does not."""


@dataclass
class TokenService:
    """A service that hands out credentials.

    reply: called with the path, the parameters and the headers of a request, whose names are in lower case;
    gives the answer, or None to refuse. requests: the target of each request.
    """

    reply: Callable[[str, Mapping[str, str], Mapping[str, str]], str | None]
    requests: list[str] = field(default_factory=list)
    rate: float | None = None
    url: str = ""


class _TokenHandler(Handler[TokenService]):
    def do_POST(self) -> None:  # noqa: N802
        self.answer()

    def do_PUT(self) -> None:  # noqa: N802
        self.answer()

    def answer(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        parameters = {name: one[0] for name, one in parse_qs(f"{parts.query}&{body}").items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.state.requests.append(
            self.requestline.split()[1]
        )  # as it was sent: `path` has one slash for two
        reply = self.state.reply(parts.path, parameters, headers)
        self.send(403 if reply is None else 200, (reply or REASON).encode())


@dataclass(frozen=True)
class Identity:
    """A store, and the environment of a pod that may read from it by its identity.

    store: as its owner has it. refused: of a pod whose identity the token service refuses, what is different.
    poor: of a pod that gets credentials, which the store refuses. secrets: what nobody may see of them.
    """

    store: Store
    service: TokenService
    environment: Mapping[str, str]
    refused: Mapping[str, str]
    poor: Mapping[str, str]
    secrets: tuple[str, ...] = (SECRET,)


@contextmanager
def _answering(
    reply: Callable[[str, Mapping[str, str], Mapping[str, str]], str | None],
    tls: ssl.SSLContext | None = None,
) -> Iterator[TokenService]:
    with answering(TokenService(reply), _TokenHandler, tls) as service:
        yield service


def _token_files(folder: Path) -> tuple[str, str]:
    """Files with the token of a pod, and with one that is not accepted."""
    right, wrong = folder / "token", folder / "wrong-token"
    right.write_text(TOKEN)
    wrong.write_text(f"{TOKEN}-wrong")
    return str(right), str(wrong)


def _until() -> str:
    """In an hour, as Amazon writes it."""
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _temporary(*, poor: bool) -> dict[str, str]:
    """Credentials of Amazon for an hour; the key is the one that the store has."""
    secret = f"{SECRET}-{POOR}" if poor else SECRET
    return {
        "AccessKeyId": "key",
        "SecretAccessKey": secret,
        "Token": f"{SECRET}-session",
        "Expiration": _until(),
    }


def _s3(store: Store) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL": store.environment["AWS_ENDPOINT_URL"], "AWS_REGION": "us-east-1"}


@contextmanager
def web_identity(folder: Path) -> Iterator[Identity]:
    """Amazon's, with the token of a service account: what EKS calls IRSA."""
    right, wrong = _token_files(folder)
    certificate, context = authority(folder)
    role = "arn:aws:iam::123456789012:role/models"

    def reply(_path: str, parameters: Mapping[str, str], _headers: Mapping[str, str]) -> str | None:
        if parameters["Action"] != "AssumeRoleWithWebIdentity" or parameters["WebIdentityToken"] != TOKEN:
            return None
        found = _temporary(poor=POOR in parameters["RoleArn"])
        found["SessionToken"] = found.pop("Token")
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in found.items())
        name = "AssumeRoleWithWebIdentity"
        result = f"<{name}Result><Credentials>{inner}</Credentials></{name}Result>"
        return f"<{name}Response>{result}</{name}Response>"

    with amazon(folder) as store, _answering(reply, context) as service:
        environment = {
            **_s3(store),
            "AWS_ROLE_ARN": role,
            "AWS_WEB_IDENTITY_TOKEN_FILE": right,
            "AWS_ENDPOINT_URL_STS": service.url,
            "SSL_CERT_FILE": str(certificate),
        }
        refused, poor = {"AWS_WEB_IDENTITY_TOKEN_FILE": wrong}, {"AWS_ROLE_ARN": f"{role}-{POOR}"}
        yield Identity(store, service, environment, refused, poor)


@contextmanager
def pod_identity(folder: Path) -> Iterator[Identity]:
    """Amazon's, from the agent on the node: EKS Pod Identity."""
    right, wrong = _token_files(folder)

    def reply(path: str, _parameters: Mapping[str, str], headers: Mapping[str, str]) -> str | None:
        return json.dumps(_temporary(poor=POOR in path)) if headers.get("authorization") == TOKEN else None

    with amazon(folder) as store, _answering(reply) as service:
        environment = {
            **_s3(store),
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{service.url}/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": right,
        }
        refused = {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": wrong}
        poor = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{service.url}/v1/{POOR}"}
        yield Identity(store, service, environment, refused, poor)


@contextmanager
def instance_role(folder: Path) -> Iterator[Identity]:
    """Amazon's, of the machine: the metadata service, in its second version."""

    def reply(path: str, _parameters: Mapping[str, str], headers: Mapping[str, str]) -> str | None:
        if path.startswith("/refused"):
            return None
        if path.endswith("/latest/api/token"):
            return TOKEN
        if headers.get("x-aws-ec2-metadata-token") != TOKEN:
            return None
        return "role" if path.endswith("/") else json.dumps(_temporary(poor=POOR in path))

    with amazon(folder) as store, _answering(reply) as service:
        environment = {**_s3(store), "AWS_METADATA_ENDPOINT": service.url}
        refused = {"AWS_METADATA_ENDPOINT": f"{service.url}/refused"}
        yield Identity(
            store, service, environment, refused, {"AWS_METADATA_ENDPOINT": f"{service.url}/{POOR}"}
        )


@contextmanager
def metadata_server(folder: Path) -> Iterator[Identity]:
    """Google's, of the machine or, in GKE, of the pod's service account."""

    def reply(path: str, _parameters: Mapping[str, str], headers: Mapping[str, str]) -> str | None:
        if path.startswith("/refused") or headers.get("metadata-flavor") != "Google":
            return None
        token = _jwt({"sub": "pod"}, folder / ("wrong.json" if POOR in path else "right.json"))
        return json.dumps({"access_token": token, "expires_in": 3600, "token_type": "Bearer"})

    with google(folder) as store, _answering(reply) as service:
        host = service.url.removeprefix("http://")
        where = {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host}
        environment = {"GOOGLE_BASE_URL": store.environment["GOOGLE_BASE_URL"], **where}
        refused, poor = (dict.fromkeys(where, f"{host}/{kind}") for kind in ("refused", POOR))
        yield Identity(store, service, environment, refused, poor, ("eyJ",))


@contextmanager
def federated_token(folder: Path) -> Iterator[Identity]:
    """Azure's, with the token of a service account: what its webhook sets for a pod in AKS."""
    right, wrong = _token_files(folder)
    certificate, context = authority(folder)

    def reply(path: str, parameters: Mapping[str, str], _headers: Mapping[str, str]) -> str | None:
        known = path == "/tenant/oauth2/v2.0/token" and parameters["client_assertion"] == TOKEN
        token = _azure_token(folder, poor=POOR in parameters["client_id"])
        return json.dumps({"access_token": token, "expires_in": 3600}) if known else None

    with azure(folder, certificate) as store, _answering(reply, context) as service:
        environment = {
            **_without_key(store),
            "AZURE_CLIENT_ID": "pod",
            "AZURE_TENANT_ID": "tenant",
            "AZURE_FEDERATED_TOKEN_FILE": right,
            "AZURE_AUTHORITY_HOST": f"{service.url}/",  # the webhook's ends in a slash, too
        }
        refused, poor = {"AZURE_FEDERATED_TOKEN_FILE": wrong}, {"AZURE_CLIENT_ID": POOR}
        yield Identity(store, service, environment, refused, poor, (SECRET, "eyJ"))


@contextmanager
def managed_identity(folder: Path) -> Iterator[Identity]:
    """Azure's, of the machine."""
    certificate, _ = authority(folder)

    def reply(path: str, parameters: Mapping[str, str], headers: Mapping[str, str]) -> str | None:
        if path.startswith("/refused") or headers.get("metadata") != "true" or not parameters.get("resource"):
            return None
        token = _azure_token(folder, poor=POOR in path)
        return json.dumps({"access_token": token, "expires_on": str(int(time.time()) + 3600)})

    with azure(folder, certificate) as store, _answering(reply) as service:
        environment = {**_without_key(store), "AZURE_MSI_ENDPOINT": f"{service.url}/token"}
        refused, poor = ({"AZURE_MSI_ENDPOINT": f"{service.url}/{kind}"} for kind in ("refused", POOR))
        yield Identity(store, service, environment, refused, poor, ("eyJ",))


def _without_key(store: Store) -> dict[str, str]:
    return {name: value for name, value in store.environment.items() if not name.endswith("_KEY")}


def _azure_token(folder: Path, *, poor: bool) -> str:
    """A token for an hour. Azurite checks issuer, audience and times, and not the signature."""
    now = int(time.time())
    audience = "https://vault.azure.net" if poor else "https://storage.azure.com"
    claims = {"iss": "https://sts.windows.net/tenant/", "aud": audience, "iat": now, "nbf": now - 60}
    return _jwt({**claims, "exp": now + 3600})


def _jwt(claims: Mapping[str, Any], account: Path | None = None) -> str:
    """A JSON web token, signed with RS256 by the private key in the file of a service account."""
    key = (
        load_pem_private_key(json.loads(account.read_text())["private_key"].encode(), None)
        if account
        else None
    )
    key = key or rsa.generate_private_key(65537, 2048)
    assert isinstance(key, rsa.RSAPrivateKey)
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
    signed = b".".join(map(_base64, parts))
    return (signed + b"." + _base64(key.sign(signed, padding.PKCS1v15(), SHA256()))).decode()


def _base64(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


IDENTITIES = (web_identity, pod_identity, instance_role, metadata_server, federated_token, managed_identity)
