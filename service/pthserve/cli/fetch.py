"""`pthserve fetch`: download a weights file and verify it."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import httpx
import rich_click as click

from pthserve.addresses import printable
from pthserve.cli.headers import HEADERS, Header, has, header_value
from pthserve.errors import WeightsError

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to wait between attempts that brought no data; after the last one, the download fails."""

Progress = Callable[[int, int | None], None]


class _Retry(Exception):
    """The attempt failed; another may succeed."""


def fetch(
    url: str, output: Path, sha256: str, *, headers: Sequence[Header] = (), progress: Progress | None = None
) -> None:
    """Download `url` to `output`, which is created only when its SHA-256 is `sha256`.

    The data received so far is in `output` + `.part`, from which an interrupted download is resumed, in this
    run or in the next. If `output` already has the expected SHA-256, nothing is downloaded.

    Args:
        url: The address of the file.
        output: The file to write.
        sha256: The expected SHA-256 of the file, in hexadecimal.
        headers: Sent with each request, but not to another host after a redirect.
        progress: Called with the number of bytes received and the total, or None if it is unknown.

    Raises:
        WeightsError: The download failed, the file is a different one, or it cannot be written.
    """
    part = output.with_name(f"{output.name}.part")
    try:
        if output.exists() and _digest(output) == sha256:
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.exists()
        digest = _download(url, part, headers, progress)
        if digest != sha256 and resumed:  # the part may be of an earlier version of the file
            part.unlink()
            digest = _download(url, part, headers, progress)
        if digest != sha256:
            part.unlink()
            raise WeightsError(
                f"{printable(url)} is not the expected file: its SHA-256 is {digest}, not {sha256}. "
                "Check the address, or change the expected SHA-256."
            )
        part.replace(output)
    except OSError as error:
        raise WeightsError(f"cannot write {output}: {error.strerror}") from error


def _download(url: str, part: Path, headers: Sequence[Header], progress: Progress | None) -> str:
    """Download the rest of `part`, with retries, and return its SHA-256."""
    try:
        first = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise WeightsError(f"{printable(url)} is not a valid address") from error
    with httpx.Client(
        headers=[(b"Accept-Encoding", b"identity"), *headers],
        timeout=30,
        follow_redirects=True,
        event_hooks={"request": [partial(_drop_headers_for_other_hosts, first, headers)]},
    ) as client:
        failures = 0  # attempts in a row that brought no data
        while True:
            before = _size(part)
            try:
                _resume(client, url, part, progress)
                return _digest(part)
            except (httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                raise WeightsError(f"{printable(url)} cannot be downloaded: {error}") from error
            except (_Retry, httpx.TransportError) as error:
                failures = 0 if _size(part) > before else failures + 1
                if failures > len(PAUSES):
                    raise WeightsError(
                        f"{printable(url)} cannot be downloaded: {error or type(error).__name__}"
                    ) from error
                time.sleep(PAUSES[max(0, failures - 1)])


def _drop_headers_for_other_hosts(url: httpx.URL, headers: Sequence[Header], request: httpx.Request) -> None:
    """Remove `headers` from a request if a redirect leads to another host than that of `url`.

    httpx removes only `Authorization`. A redirect from http to https on the same host keeps the headers.
    """
    at, to = (url.scheme, url.port), (request.url.scheme, request.url.port)
    upgraded = (at, to) == (("http", None), ("https", None))
    if request.url.host != url.host or not (to == at or upgraded):
        for name, _ in headers:
            request.headers.pop(name.decode(), None)


def _resume(client: httpx.Client, url: str, part: Path, progress: Progress | None) -> None:
    """Append the rest of the file to `part`, or write it from the start if the server cannot resume."""
    received = _size(part)
    with client.stream("GET", url, headers={"Range": f"bytes={received}-"} if received else {}) as reply:
        if reply.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            if reply.headers.get("Content-Range") == f"bytes */{received}":
                return
            os.truncate(part, 0)
            raise _Retry("the server cannot resume the download")
        if reply.status_code >= 500 or reply.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise _Retry(f"the server responds with {reply.status_code} {reply.reason_phrase}")
        if reply.status_code not in {httpx.codes.OK, httpx.codes.PARTIAL_CONTENT}:
            raise WeightsError(f"{printable(url)} responds with {reply.status_code} {reply.reason_phrase}")
        if reply.status_code == httpx.codes.OK:
            received = 0
        elif not reply.headers.get("Content-Range", "").startswith(f"bytes {received}-"):
            raise WeightsError(f"{printable(url)} sent a different part of the file than requested")
        length = reply.headers.get("Content-Length")
        total = received + int(length) if length else None
        with part.open("ab" if received else "wb") as file:
            for block in reply.iter_raw(2**20):
                file.write(block)
                received += len(block)
                if progress:
                    progress(received, total)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@click.command("fetch")
@click.argument("url")
@click.option(
    "--output", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write."
)
@click.option("--sha256", required=True, metavar="DIGEST", help="Expected SHA-256 of the file.")
@click.option(
    "--authorization",
    envvar="PTHSERVE_FETCH_AUTHORIZATION",
    type=header_value,
    metavar="VALUE",
    help="Value of the Authorization header. Other users of the machine can see a command line, so set the "
    "environment variable PTHSERVE_FETCH_AUTHORIZATION instead.",
)
@HEADERS
def command(
    url: str, output: Path, sha256: str, authorization: bytes | None, headers: tuple[Header, ...]
) -> None:
    """Download a weights file and verify its SHA-256.

    An interrupted download is resumed, in the same run or in the next.
    """
    from pthserve.cli.display import reading

    if authorization and not has(headers, b"Authorization"):
        headers = (*headers, (b"Authorization", authorization))
    with reading(output.name) as progress:
        fetch(url, output, sha256, headers=headers, progress=progress)
