"""Web: files over HTTP, for https:// and for the other sources that are HTTP underneath.

Proxies and the certificates of private authorities come from the usual variables, which httpx reads:
HTTPS_PROXY, HTTP_PROXY, NO_PROXY, SSL_CERT_FILE, SSL_CERT_DIR.
"""

import os
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import httpx

from pthserve.addresses import is_loopback, printable, redacted
from pthserve.errors import WeightsError
from pthserve.sources.reference import Reference
from pthserve.sources.transfer import Interrupted, Listing, RemoteFile, Stream

Header = tuple[bytes, bytes]
"""Name and value, as they are sent."""
Send = Callable[..., AbstractContextManager[httpx.Response]]
AUTHORIZATION = "PTHSERVE_FETCH_AUTHORIZATION"
"""The environment variable with the value of the Authorization header."""
TIMEOUT = 30.0
"""Seconds without a byte."""

_PASSING = frozenset(
    (
        httpx.codes.REQUEST_TIMEOUT,
        httpx.codes.TOO_EARLY,
        httpx.codes.TOO_MANY_REQUESTS,
    )
)
"""Statuses below 500 after which another attempt may succeed."""


def ambient_headers() -> list[Header]:
    """The Authorization header that the environment gives, if any."""
    value = os.environ.get(AUTHORIZATION, "").strip()
    return [(b"Authorization", value.encode())] if value else []


def client(url: str, headers: Sequence[Header] = (), *, plain: bool = False) -> httpx.Client:
    """A client for files of the server of `url`.

    Args:
        headers: Sent with each request, but not to another host after a redirect.
        plain: Whether `http://` may be used to another machine, as it may if the file's SHA-256 is known.
    """
    try:
        first = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise WeightsError(f"{printable(url)} is not a valid address") from error
    return httpx.Client(
        headers=[(b"Accept-Encoding", b"identity"), *headers],
        timeout=TIMEOUT,
        follow_redirects=True,
        event_hooks={
            "request": [partial(_drop_for_other_hosts, first, headers), partial(_check_plain, plain)]
        },
    )


def _drop_for_other_hosts(url: httpx.URL, headers: Sequence[Header], request: httpx.Request) -> None:
    """Remove `headers` from a request if a redirect leads to another host than that of `url`.

    httpx removes only `Authorization`. A redirect from http to https on the same host keeps the headers.
    """
    if not same_host(url, request.url):
        for name, _ in headers:
            request.headers.pop(name.decode(), None)


def same_host(url: httpx.URL, other: httpx.URL) -> bool:
    """Whether what is meant for `url` may be sent to `other`."""
    at, to = (url.scheme, url.port), (other.scheme, other.port)
    upgraded = (at, to) == (("http", None), ("https", None))
    return other.host == url.host and (to == at or upgraded)


def _check_plain(plain: bool, request: httpx.Request) -> None:
    """Raise WeightsError for a request that could be read or changed in transit."""
    if request.url.scheme == "http" and not plain and not is_loopback(request.url.host):
        raise WeightsError(
            f"{printable(str(request.url))}: without TLS, the file can be changed in transit; use "
            "https://, or give its SHA-256 (--sha256)"
        )


def files(reference: Reference, headers: Sequence[Header], *, plain: bool, signed: bool) -> Listing:
    """The file at an address, and its signature, `ADDRESS.sig`, where `signed`.

    Args:
        headers: Sent with each request, but not to another host; see `client`. An Authorization among them
            replaces that of the environment.
        plain: See `client`.
    """
    given = {name.lower() for name, _ in headers}
    ambient = [one for one in ambient_headers() if one[0].lower() not in given]
    http = client(reference.text, [*headers, *ambient], plain=plain)
    found = [RemoteFile(reference.name, str(reference), partial(open_file, http.stream, reference.text))]
    if signed:
        url = str(httpx.URL(reference.text).copy_with(path=httpx.URL(reference.text).path + ".sig"))
        found.append(
            RemoteFile(f"{reference.name}.sig", printable(url), partial(open_file, http.stream, url))
        )
    return Listing(found, is_file=True, close=http.close)


@contextmanager
def open_file(send: Send, url: str, offset: int, version: str | None) -> Iterator[Stream]:
    """Open the file at `url`; see `RemoteFile.open`. send: such as the method `stream` of a client."""
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    if offset and version:
        headers["If-Range"] = version
    with errors(url), send("GET", url, headers=headers) as reply:
        tag = strong_tag(reply.headers)
        if reply.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            total = reply.headers.get("Content-Range", "").removeprefix("bytes */")
            if total == str(offset):  # of the same version, or `If-Range` would have brought the whole file
                yield Stream(offset, offset, version, iter(()))
                return
            with send("GET", url) as again:
                check(again)
                yield Stream(0, _length(again), strong_tag(again.headers), again.iter_raw())
            return
        check(reply)
        if reply.status_code == httpx.codes.OK:
            yield Stream(0, _length(reply), tag, reply.iter_raw())
            return
        if not reply.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise WeightsError(f"{printable(url)} sent a different part of the file than requested")
        rest = _length(reply)
        yield Stream(offset, offset + rest if rest is not None else None, tag, reply.iter_raw())


@contextmanager
def errors(url: str) -> Iterator[None]:
    """Raise what httpx raises as Interrupted, where another attempt may succeed, or as WeightsError."""
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise WeightsError(f"{printable(url)} cannot be downloaded: {redacted(str(error))}") from None
    except httpx.TransportError as error:
        if _is_certificate(error):
            raise WeightsError(
                f"{printable(url)} cannot be downloaded: {redacted(str(error))}; if the server's "
                "certificate is of a private authority, name a file with the authority's certificate in "
                "SSL_CERT_FILE"
            ) from None
        raise Interrupted(redacted(str(error)) or type(error).__name__) from None


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def check(reply: httpx.Response) -> None:
    """Raise Interrupted or WeightsError for a status other than 200 and 206."""
    status = f"{reply.status_code} {reply.reason_phrase}".strip()
    if reply.status_code >= 500 or reply.status_code in _PASSING:
        raise Interrupted(f"the server responds with {status}", _seconds(reply.headers))
    if reply.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise WeightsError(f"{printable(str(reply.request.url))} responds with {status}")


def _seconds(headers: Mapping[str, str]) -> float:
    """The pause that the server asks for; 0 where it asks for none, or names a date."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def _length(reply: httpx.Response) -> int | None:
    value = reply.headers.get("Content-Length", "")
    return int(value) if value.isdigit() else None


def strong_tag(headers: Mapping[str, str]) -> str | None:
    """The entity tag, if equal tags mean equal bytes."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else None
