"""Object stores: an object, or all objects below a key, of S3 and what speaks its API, Google and Azure.

Credentials, regions and endpoints come from the environment, in the variables that obstore documents: for S3
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and so on, or a workload's identity.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pthserve.addresses import is_loopback, printable, redacted
from pthserve.errors import WeightsError
from pthserve.sources.reference import Reference
from pthserve.sources.transfer import MAX_FILES, Interrupted, Listing, RemoteFile, Stream, retried
from pthserve.text import quoted

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_CHUNK = 2**16
"""Bytes that are handed over at once; what is not handed over yet is lost when a connection breaks."""
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""The variables with the address of a store other than the provider's own; the first that is set counts."""
_REFUSED = re.compile(r"status code: 4(?!08|29)\d\d")
"""In the message of an error that obstore has no class for: another attempt would end the same way."""
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the identity of the workload",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the identity of the workload",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or the identity of the workload",
}


def files(reference: Reference, *, plain: bool, signed: bool) -> Listing:
    """The object at the key, or else all objects below it.

    Args:
        plain: Whether an endpoint without TLS may be on another machine, for an object whose SHA-256 is
        known. signed: With an object comes its signature, `KEY.sig`.

    Raises:
        WeightsError: there are none, the store refuses them, or obstore is not installed.
    """
    endpoint = _endpoint(reference)
    insecure = endpoint is not None and _is_insecure(endpoint)
    if insecure and not plain:
        raise _without_tls(reference, endpoint)
    store = _store(reference, endpoint)
    listing = retried(lambda: _listed(store, reference, signed=signed), str(reference))
    if insecure and not listing.is_file:
        raise _without_tls(reference, endpoint)
    return listing


def connected(reference: Reference) -> "ObjectStore":
    """The store that `reference` is in, for data of the user; its endpoint may be without TLS.

    Raises:
        WeightsError: obstore is not installed, or the environment's configuration is not valid.
    """
    return _store(reference, _endpoint(reference))


def _endpoint(reference: Reference) -> str | None:
    return next((value for name in _ENDPOINTS[reference.scheme] if (value := os.environ.get(name))), None)


def _is_insecure(endpoint: str) -> bool:
    return endpoint.lower().startswith("http://") and not is_loopback(urlsplit(endpoint).hostname or "")


def _without_tls(reference: Reference, endpoint: str | None) -> WeightsError:
    return WeightsError(
        f"{reference}: the endpoint {printable(endpoint or '')} is without TLS, so the data can be changed "
        "in transit; use https://, or name one object and give its SHA-256 (--sha256)"
    )


def _listed(store: "ObjectStore", reference: Reference, *, signed: bool) -> Listing:
    import obstore

    key = reference.path.rstrip("/")
    with errors(reference):
        if key and not reference.path.endswith("/"):
            try:
                found = obstore.head(store, key)
            except FileNotFoundError:
                pass
            else:
                alone = [_file(store, reference, found, reference.name)]
                if signed:
                    signature = obstore.head(store, f"{key}.sig")
                    alone.append(_file(store, reference, signature, f"{reference.name}.sig"))
                return Listing(alone, is_file=True)
        objects: list[Any] = []
        for batch in obstore.list(store, prefix=key or None):
            objects += [one for one in batch if not one["path"].endswith("/")]
            if len(objects) > MAX_FILES:
                raise WeightsError(f"{reference}: has more than {MAX_FILES} objects below it; name a model")
    if not objects:
        raise WeightsError(f"{reference}: there is no such object, and none below it")
    inside = f"{key}/" if key else ""
    below = [_file(store, reference, one, one["path"].removeprefix(inside)) for one in objects]
    return Listing(below, is_file=False)


def _file(store: "ObjectStore", reference: Reference, found: Any, name: str) -> RemoteFile:
    address = f"{reference.scheme}://{reference.host}/{found['path']}"
    opened = partial(_open, store, reference, found["path"])
    return RemoteFile(name, address, opened, size=found["size"], version=found["e_tag"])


@contextmanager
def _open(
    store: "ObjectStore", reference: Reference, path: str, offset: int, version: str | None
) -> Iterator[Stream]:
    import obstore
    from obstore.exceptions import PreconditionError

    with errors(reference):
        found = None
        if offset:
            options: Any = {"range": {"offset": offset}, "if_match": version}
            with suppress(PreconditionError):
                found = obstore.get(store, path, options=options)
        if found is None or (offset and found.meta["e_tag"] != version):  # not every store heeds If-Match
            offset, found = 0, obstore.get(store, path)
        meta = found.meta
        yield Stream(offset, meta["size"], meta["e_tag"], map(bytes, found.stream(min_chunk_size=_CHUNK)))


def _store(reference: Reference, endpoint: str | None) -> "ObjectStore":
    try:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, S3Store
    except ModuleNotFoundError:
        raise WeightsError(
            f"{reference}: obstore is not installed; install pthserve[sources], or use the full image"
        ) from None
    options: dict[str, Any] = {
        "client_options": _client_options(endpoint),
        "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=30)},
    }
    try:
        match reference.scheme:
            case "s3":
                config: Any = {"endpoint": endpoint} if endpoint else {}
                return S3Store(reference.host, config=config, **options)
            case "gs":
                config = {"base_url": endpoint} if endpoint else {}
                return GCSStore(reference.host, config=config, **options)
            case _:
                config = {"endpoint": endpoint} if endpoint else {}
                if authority := os.environ.get("AZURE_AUTHORITY_HOST"):
                    # Azure's webhook ends it in a slash, and object_store adds another.
                    config["authority_host"] = authority.rstrip("/")
                return AzureStore(reference.host, config=config, **options)
    except (BaseError, ValueError) as error:
        raise WeightsError(
            f"{reference}: the store cannot be set up: {_reason(error)}; credentials are read from "
            f"{_CREDENTIALS[reference.scheme]}"
        ) from None


def _client_options(endpoint: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=10),
        "read_timeout": timedelta(seconds=30),
        "timeout": timedelta(days=1),  # of a whole download
    }
    if endpoint and endpoint.lower().startswith("http://"):
        options["allow_http"] = True
    if authority := os.environ.get("SSL_CERT_FILE"):
        try:
            options["root_certificate"] = Path(authority).read_bytes()
        except OSError as error:
            raise WeightsError(f"SSL_CERT_FILE: {authority}: cannot be read: {error.strerror}") from error
    return options


@contextmanager
def errors(reference: Reference) -> Iterator[None]:
    """Raise what obstore raises as Interrupted, where another attempt may succeed, or as WeightsError."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise WeightsError(
            f"{reference}: the store refuses access: {_reason(error)}; credentials are read from "
            f"{_CREDENTIALS[reference.scheme]}"
        ) from None
    except FileNotFoundError:
        raise WeightsError(f"{reference}: there is no such object") from None
    except BaseError as error:
        reason = f"{_reason(error)}; credentials are read from {_CREDENTIALS[reference.scheme]}"
        if _REFUSED.search(str(error)):
            raise WeightsError(f"{reference}: {reason}") from None
        raise Interrupted(reason) from None


def _reason(error: BaseException) -> str:
    """The error in one line without secrets: of obstore's report of many lines the first."""
    lines = str(error).strip().splitlines()
    return quoted(redacted(lines[0] if lines else type(error).__name__), 300)
