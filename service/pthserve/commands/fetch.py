"""`pthserve fetch`: a weights file from an address, whole and checked, or not at all."""

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import rich_click as click

from pthserve.errors import WeightsError

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between tries that brought nothing; then it is given up."""

Progress = Callable[[int, int | None], None]


class _Again(Exception):
    """This try failed, and another may not."""


def fetch(
    url: str, output: Path, sha256: str, *, authorization: str | None = None, progress: Progress | None = None
) -> None:
    """Bring the file at `url` to `output`, where it appears only when its SHA-256 is `sha256`.

    What has arrived lies in `output` + `.part` and is continued after an interruption, now or in the next
    run. A file that is there and right is left alone.

    Args:
        authorization: value of the Authorization header. It is not sent on to another host by a redirect.
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
        found = _complete(url, part, authorization, progress)
        if found != sha256 and continued:  # begun from another file, perhaps
            part.unlink()
            found = _complete(url, part, authorization, progress)
        if found != sha256:
            part.unlink()
            raise WeightsError(
                f"{_shown(url)} is not the file that was pinned: its SHA-256 is {found}, not {sha256}. "
                "Check the address, or pin the new file."
            )
        part.replace(output)
    except OSError as error:
        raise WeightsError(f"cannot write {output}: {error.strerror}") from error


def _complete(url: str, part: Path, authorization: str | None, progress: Progress | None) -> str:
    """Fetch what is missing of `part`, over as many tries as bring something; its SHA-256."""
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": authorization} if authorization else {})
    with httpx.Client(headers=headers, timeout=30, follow_redirects=True) as client:
        fruitless = 0
        while True:
            before = _size(part)
            try:
                _continue(client, url, part, progress)
                return _digest(part)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                raise WeightsError(f"{_shown(url)} cannot be fetched: {error}") from error
            except (_Again, httpx.TransportError) as error:
                fruitless = 0 if _size(part) > before else fruitless + 1
                if fruitless > len(PAUSES):
                    raise WeightsError(
                        f"{_shown(url)} cannot be fetched: {error or type(error).__name__}"
                    ) from error
                time.sleep(PAUSES[max(0, fruitless - 1)])


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
            raise WeightsError(f"{_shown(url)} answers {reply.status_code} {reply.reason_phrase}")
        if reply.status_code == httpx.codes.OK:
            there = 0
        elif not reply.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
            raise WeightsError(f"{_shown(url)} sends another part of the file than was asked for")
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


def _shown(url: str) -> str:
    """The address without what may be secret in it."""
    return re.sub(r"//[^/@]*@", "//", re.sub(r"[?#].*", "", url))


@click.command("fetch")
@click.argument("url")
@click.option(
    "--output", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Where to."
)
@click.option("--sha256", required=True, metavar="DIGEST", help="What the file must hash to.")
@click.option(
    "--authorization",
    envvar="PTHSERVE_FETCH_AUTHORIZATION",
    help="Value of the Authorization header, better given as PTHSERVE_FETCH_AUTHORIZATION.",
)
def command(url: str, output: Path, sha256: str, authorization: str | None) -> None:
    """Bring a weights file from an address, whole and checked.

    An interrupted transfer is continued where it stopped, now or the next time.
    """
    from pthserve.commands.display import reading

    with reading(output.name) as progress:
        fetch(url, output, sha256, authorization=authorization, progress=progress)
