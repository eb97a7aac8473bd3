"""Transfer: download one file, resume it after interruptions, and check it before it gets its name."""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pthserve.errors import WeightsError
from pthserve.files.regular_files import sha256

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to wait between attempts that brought no data; after the last one, the download fails. Each pause
is made up to a quarter longer at random, so that many pods do not come back at once."""
ATTEMPTS = 100
"""Most attempts at one file, those that brought data among them."""
LONGEST_PAUSE = 60.0
"""Seconds; a server that asks for a longer pause (Retry-After) is asked again after this one."""
BLOCK = 2**20
"""Bytes that are written at once."""
MAX_FILES = 10_000
"""Of a model; a packed model has one a golden image, and nine beside."""

Progress = Callable[[int, int | None], None]
"""Called with the number of bytes received and the total, or None where it is unknown."""


class Interrupted(Exception):
    """The attempt failed; another may succeed. `after`: seconds that the server asks to wait."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True, slots=True)
class Stream:
    """What a source sends: `blocks`, of which the first begins at byte `start` of `total`.

    version: a strong entity tag, or what else is another if the content is; None where the source has none.
    """

    start: int
    total: int | None
    version: str | None
    blocks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a source.

    name: its path relative to the model. address: for messages. size, sha256, version: what the source, or
    the user, states of it.
    open: of an offset and the version that the bytes before it have. It sends what follows; from the start
    on, if the file is of another version by now, or the source cannot send a part. Raises Interrupted or
    WeightsError.
    """

    name: str
    address: str
    open: Callable[[int, str | None], AbstractContextManager[Stream]]
    size: int | None = None
    sha256: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a model, which can be opened until `close`. is_file: it is the first; or else a folder."""

    files: list[RemoteFile]
    is_file: bool
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Received:
    """A file that has arrived: its SHA-256, its size in bytes, and its version where the source has one."""

    sha256: str
    size: int
    version: str | None


def download(file: RemoteFile, target: Path, most: int, progress: Progress | None = None) -> Received:
    """Bring `file` to `target`, which is created only when it is whole and its SHA-256 is the stated one.

    What has arrived so far is in `target` + `.part`, from which a download that was interrupted is resumed,
    in this process or in the next; its version is in `target` + `.part.version`.

    Args:
        most: Largest size in bytes.
        progress: Called as data arrives.

    Raises:
        WeightsError: the download failed, or brought another file than the expected one.
        OSError: the file cannot be written.
    """
    part = _Part(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.size > 0
    digest = _received(file, part, most, progress)
    if resumed and file.sha256 not in (None, digest):  # the part may be of an earlier version of the file
        part.remove()
        digest = _received(file, part, most, progress)
    if file.sha256 not in (None, digest):
        part.remove()
        raise WeightsError(
            f"{file.address} is not the expected file: its SHA-256 is {digest}, not {file.sha256}. "
            "Check the address, or change the expected SHA-256."
        )
    return part.finish(digest)


class _Part:
    """The part of a file that has arrived, and which version of the file it is of."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._version = target.with_name(f"{target.name}.part.version")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def version(self) -> str | None:
        return self._version.read_text("utf-8") or None if self._version.exists() else None

    def begin(self, version: str | None) -> None:
        """Drop what is there: a file of `version` begins."""
        self.path.unlink(missing_ok=True)
        self._version.write_text(version or "", "utf-8")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)

    def finish(self, digest: str) -> Received:
        """Give the file its name, once its bytes are on the disk."""
        received = Received(digest, self.size, self.version)
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(self.target)
        self._version.unlink(missing_ok=True)
        return received


def retried(attempt: Callable[[], T], address: str, size: Callable[[], int] = lambda: 0) -> T:
    """What `attempt` returns, which is repeated, with pauses, as long as it raises Interrupted and may.

    size: bytes that are there; an attempt that brought some is not a failed one.
    """
    failures = 0  # attempts in a row that brought no data
    for number in range(ATTEMPTS):
        before = size()
        try:
            return attempt()
        except Interrupted as error:
            failures = 0 if size() > before else failures + 1
            if failures > len(PAUSES) or number + 1 == ATTEMPTS:
                raise WeightsError(f"{address} cannot be downloaded: {error}") from error
            pause = PAUSES[max(0, failures - 1)] * random.uniform(1, 1.25)  # noqa: S311
            time.sleep(max(pause, min(error.after, LONGEST_PAUSE)))
    raise AssertionError("the last attempt returns or raises")


def _received(file: RemoteFile, part: _Part, most: int, progress: Progress | None) -> str:
    """Bring the rest of `part`, and return the SHA-256 of the whole."""
    retried(lambda: _continue(file, part, most, progress), file.address, lambda: part.size)
    return sha256(part.path)


def _continue(file: RemoteFile, part: _Part, most: int, progress: Progress | None) -> None:
    """Append the rest of the file, or write it from the start where the part cannot be continued."""
    offset = part.size
    if offset and part.version is None and file.sha256 is None:
        offset = 0  # nobody could say whether the part and the rest belong together
    if offset and file.size is not None and offset >= file.size:
        if offset == file.size and (file.sha256 is not None or part.version == file.version):
            return  # it was interrupted before it got its name
        offset = 0
    with file.open(offset, part.version if offset else None) as stream:
        if stream.start != offset or not offset:
            offset = 0
            part.begin(stream.version)
        _check_room(file, part.target, stream.total if stream.total is not None else file.size, offset, most)
        with part.path.open("ab") as output:
            for block in stream.blocks:
                output.write(block)
                offset += len(block)
                if offset > most:
                    raise _too_large(file, most)
                if progress:
                    progress(offset, stream.total)
    expected = stream.total if stream.total is not None else file.size
    if expected is not None and offset < expected:
        raise Interrupted(f"the connection ended after {offset} of {expected} bytes")
    if expected is not None and offset > expected:
        part.remove()
        raise Interrupted(f"{offset} bytes arrived of a file of {expected}")


def _check_room(file: RemoteFile, target: Path, total: int | None, there: int, most: int) -> None:
    """Refuse a file before it is received, if it is known to be too large."""
    if total is None:
        return
    if total > most:
        raise _too_large(file, most)
    free = shutil.disk_usage(target.parent).free
    if total - there > free:
        raise WeightsError(
            f"{file.address} cannot be stored in {target.parent}: {total - there} bytes are needed and "
            f"{free} are free"
        )


def _too_large(file: RemoteFile, most: int) -> WeightsError:
    return WeightsError(
        f"{file.address} is larger than the {most} bytes that may be downloaded; raise --max-download if it "
        "is the right file"
    )
