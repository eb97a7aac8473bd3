"""`pthserve fetch`: a weights file from an address, whole and checked, or not at all."""

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
"""Seconds between tries that brought nothing; then it is given up."""

Progress = Callable[[int, int | None], None]


class _Again(Exception):
    """This try failed, and another may not."""


def fetch(
    url: str, output: Path, sha256: str, *, headers: Sequence[Header] = (), progress: Progress | None = None
) -> None:
    """Bring the file at `url` to `output`, where it appears only when its SHA-256 is `sha256`.

    What has arrived lies in `output` + `.part` and is continued after an interruption, now or in the next
    run. A file that is there and right is left alone.

    Args:
        headers: sent with each request, but not to another host that a redirect leads to.
        progress: called with the bytes that are there and the bytes in all, None when unknown.

    Raises:
        WeightsError: the address refuses or does not answer, the file is another, or it cannot be written.
    """
    part = output.with_name(f"{output.name}.part")
    try:
        if output.exists() and _digest(output) == sha256:
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        continued = part.exists()
        found = _complete(url, part, headers, progress)
        if found != sha256 and continued:  # begun from another file, perhaps
            part.unlink()
            found = _complete(url, part, headers, progress)
        if found != sha256:
            part.unlink()
            raise WeightsError(
                f"{printable(url)} is not the file that was pinned: its SHA-256 is {found}, not {sha256}. "
                "Check the address, or pin the new file."
            )
        part.replace(output)
    except OSError as error:
        raise WeightsError(f"cannot write {output}: {error.strerror}") from error


def _complete(url: str, part: Path, headers: Sequence[Header], progress: Progress | None) -> str:
    """Fetch what is missing of `part`, over as many tries as bring something; its SHA-256."""
    try:
        first = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise WeightsError(f"{printable(url)} is not a valid address") from error
    with httpx.Client(
        headers=[(b"Accept-Encoding", b"identity"), *headers],
        timeout=30,
        follow_redirects=True,
        event_hooks={"request": [partial(_keep_to_the_host, first, headers)]},
    ) as client:
        fruitless = 0
        while True:
            before = _size(part)
            try:
                _continue(client, url, part, progress)
                return _digest(part)
            except (httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                raise WeightsError(f"{printable(url)} cannot be fetched: {error}") from error
            except (_Again, httpx.TransportError) as error:
                fruitless = 0 if _size(part) > before else fruitless + 1
                if fruitless > len(PAUSES):
                    raise WeightsError(
                        f"{printable(url)} cannot be fetched: {error or type(error).__name__}"
                    ) from error
                time.sleep(PAUSES[max(0, fruitless - 1)])


def _keep_to_the_host(url: httpx.URL, headers: Sequence[Header], request: httpx.Request) -> None:
    """Take `headers` out of a request that a redirect sends to another host than `url`'s.

    httpx itself takes out `Authorization` and no other. From http to https on one host they stay.
    """
    at, to = (url.scheme, url.port), (request.url.scheme, request.url.port)
    upgraded = (at, to) == (("http", None), ("https", None))
    if request.url.host != url.host or not (to == at or upgraded):
        for name, _ in headers:
            request.headers.pop(name.decode(), None)


def _continue(client: httpx.Client, url: str, part: Path, progress: Progress | None) -> None:
    """Append to `part` what it lacks, or begin it anew where the server cannot continue."""
    there = _size(part)
    with client.stream("GET", url, headers={"Range": f"bytes={there}-"} if there else {}) as reply:
        if reply.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            if reply.headers.get("Content-Range") == f"bytes */{there}":
                return
            os.truncate(part, 0)
            raise _Again("it does not continue")
        if reply.status_code >= 500 or reply.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise _Again(f"it answers {reply.status_code} {reply.reason_phrase}")
        if reply.status_code not in {httpx.codes.OK, httpx.codes.PARTIAL_CONTENT}:
            raise WeightsError(f"{printable(url)} answers {reply.status_code} {reply.reason_phrase}")
        if reply.status_code == httpx.codes.OK:
            there = 0
        elif not reply.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
            raise WeightsError(f"{printable(url)} sends another part of the file than was asked for")
        length = reply.headers.get("Content-Length")
        total = there + int(length) if length else None
        with part.open("ab" if there else "wb") as file:
            for block in reply.iter_raw(2**20):
                file.write(block)
                there += len(block)
                if progress:
                    progress(there, total)


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
