"""Images: in a fixed order, in single files or in a tar archive; each is read when it is needed.

The images of an archive are read in any order, which needs an uncompressed tar on this machine. An archive at
an address, or a compressed one, is copied to a temporary folder first.
"""

import bz2
import gzip
import lzma
import os
import tarfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

from pthserve.addresses import is_address, shown
from pthserve.errors import NotFound, PthserveError, TooLarge, WeightsError
from pthserve.files import regular_files
from pthserve.scoring import scratch
from pthserve.scoring.listing import Entry, is_hidden, kind
from pthserve.scoring.reading import Reader
from pthserve.sources.reference import STORES, parse
from pthserve.sources.transfer import RemoteFile, download
from pthserve.text import of_path

_COMPRESSED: dict[bytes, Callable[[Path], gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
"""The first bytes of a compressed file, and the class that reads it."""
_BLOCK = tarfile.BLOCKSIZE


class Images(Protocol):
    """Images in a fixed order. Any thread may read them, until they are closed."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The name of the image in the results."""
        ...

    def read(self, index: int, most: int) -> bytes:
        """Return the image file, if it has at most `most` bytes; raises the errors of `Reader`."""
        ...

    def close(self) -> None:
        """Free their resources."""
        ...


class Files:
    """Images in single files."""

    def __init__(self, entries: Sequence[Entry], reader: Reader) -> None:
        self._entries = entries
        self._reader = reader

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, index: int) -> str:
        """See `Images`."""
        return self._entries[index].key

    def read(self, index: int, most: int) -> bytes:
        """See `Images`."""
        return self._reader(self._entries[index].place, most)

    def close(self) -> None:
        """Do nothing; see `Images`."""


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


class Archive:
    """The images in a tar archive, in its order; other files in it are left out.

    Args:
        entry: The archive.
        most: Maximum size in bytes of what is downloaded or unpacked.

    Raises:
        PthserveError: It cannot be read, or is damaged.
    """

    def __init__(self, entry: Entry, most: int) -> None:
        self._entry = entry
        self._closing = ExitStack()
        try:
            path = Path(entry.place)
            if is_address(entry.place):
                path = _downloaded(entry.place, self._folder(), most)
            path = self._plain(path, most)
            self._members = _members(path, entry.key)
            self._file = self._closing.enter_context(regular_files.open_regular(path))
        except (OSError, EOFError, lzma.LZMAError, tarfile.TarError, WeightsError) as error:
            self._closing.close()
            raise PthserveError(f"{shown(entry.place)}: the archive cannot be read: {error}") from error
        except BaseException:
            self._closing.close()
            raise

    def __len__(self) -> int:
        return len(self._members)

    def key(self, index: int) -> str:
        """The path in the archive, after the key of the archive; see `Images`."""
        return f"{self._entry.key}/{self._members[index].name}"

    def read(self, index: int, most: int) -> bytes:
        """See `Images`."""
        member = self._members[index]
        if member.size > most:
            raise TooLarge(f"the file is larger than {most} bytes (--max-bytes)")
        try:
            content = os.pread(self._file.fileno(), member.size, member.offset)
        except OSError as error:
            raise PthserveError(
                f"{shown(self._entry.place)}: cannot be read: {error.strerror or error}"
            ) from error
        if len(content) < member.size:
            raise NotFound("the file is incomplete: the archive was changed while it was read")
        return content

    def close(self) -> None:
        """Close the archive, and remove the temporary copy; see `Images`."""
        self._closing.close()

    def _folder(self) -> Path:
        return self._closing.enter_context(scratch.folder())

    def _plain(self, path: Path, most: int) -> Path:
        """Return `path`, or an unpacked copy if the archive is compressed."""
        with regular_files.open_regular(path) as file:
            first = file.read(8)
        opening = next((one for start, one in _COMPRESSED.items() if first.startswith(start)), None)
        if opening is None:
            return path
        plain = self._folder() / "archive.tar"
        with opening(path) as packed, plain.open("wb") as output:
            while block := packed.read(2**20):
                output.write(block)
                if output.tell() > most:
                    raise PthserveError(
                        f"{shown(self._entry.place)}: has more than {most} bytes when unpacked; raise "
                        "--max-download if it is the right archive"
                    )
        return plain


def _downloaded(place: str, folder: Path, most: int) -> Path:
    """Download the archive at an address. No Authorization is sent: a list may name any server."""
    from pthserve.sources import object_stores, web

    reference = parse(place)
    assert reference is not None
    target = folder / "download"
    if reference.scheme in STORES:
        download(object_stores.files(reference, plain=True, signed=False).files[0], target, most)
        return target
    with web.client(place, plain=True) as http:
        opened = partial(web.open_file, http.stream, reference.text)
        download(RemoteFile(reference.name, str(reference), opened), target, most)
    return target


def _members(path: Path, key: str) -> list[_Member]:
    """Return the images in a tar, once it is complete: `tarfile` mistakes damage for the end."""
    members = []
    with tarfile.open(path, "r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or it would keep all of them
            if member.isreg() and not member.issparse() and _is_image(member.name):
                members.append(_Member(of_path(member.name), member.offset_data, member.size))
        end = archive.offset
    with path.open("rb") as file:
        file.seek(end)
        blocks = iter(lambda: file.read(2**20), b"")
        if len(first := next(blocks, b"")) < _BLOCK or any(
            one.strip(b"\0") for one in chain((first,), blocks)
        ):
            raise PthserveError(
                f"{key}: from byte {end} on, the archive is damaged or incomplete, or another one follows"
            )
    return members


def _is_image(name: str) -> bool:
    return kind(name) == "image" and not is_hidden(name.removeprefix("./"))
