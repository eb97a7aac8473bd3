"""TorchServe: what is in a model archive that `torch-model-archiver` made. Nothing of it is run.

Its three formats hold the same files: `.mar` (zip), `.tar.gz` (with the format `tgz`) and a folder (with
`no-archive`). `MAR-INF/MANIFEST.json` names the weights, the handler and the model's code.
"""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from pthserve.errors import WeightsError
from pthserve.files import documents, formats, regular_files
from pthserve.files.card_values import MAX_WORD
from pthserve.text import quoted, whole

MANIFEST = "MAR-INF/MANIFEST.json"
LABELS = "index_to_name.json"
ENTRIES = 10_000
"""Most files in an archive."""
DIRECTORY = 8 * 2**20
"""Most bytes of the list of files in a zip archive, which zipfile holds in memory."""
SMALL = 4 * 2**20
"""Most bytes of a manifest, of labels, and of a script that is searched for a class."""
RATIO = 50
"""An archive may unpack to so many times its bytes. Trained weights hardly compress, to a tenth at most."""
SLACK = 64 * 2**20
"""Bytes that it may unpack to beside these."""
PIECE = 2**20
"""Bytes that are copied at once."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What MANIFEST.json says of the model.

    weights: the name of the file with the state dict. code: of the Python file with the model's class, for
    an eager model. handler: the name of one of TorchServe's own, or of a Python file. requirements, config:
    names of files that TorchServe reads at its start.
    """

    name: str
    version: str
    weights: str
    handler: str
    code: str | None = None
    requirements: str | None = None
    config: str | None = None


class Archive:
    """The files of an archive, by their names in it.

    sizes: bytes of each file once it is unpacked. root: what stands before each name in `sizes`.
    """

    def __init__(
        self, path: Path, sizes: Mapping[str, int], opened: Callable[[str], IO[bytes]], most: float
    ) -> None:
        self._path, self.sizes, self._opened = path, sizes, opened
        if len(sizes) > ENTRIES:
            raise WeightsError(f"{path}: has more than {ENTRIES} files")
        if sum(sizes.values()) > most:
            raise WeightsError(
                f"{path}: claims to hold {sum(sizes.values()):,} bytes, more than {RATIO} times its size; "
                "weights do not compress that well, so nothing was unpacked"
            )
        # The format `tgz` puts all files into a folder.
        found = [
            name
            for name in sizes
            if name == MANIFEST or (name.count("/") == 2 and name.endswith(f"/{MANIFEST}"))
        ]
        if len(found) != 1:
            raise WeightsError(
                f"{path}: is not an archive of torch-model-archiver: it has no {MANIFEST}"
                if not found
                else f"{path}: has several files {MANIFEST}"
            )
        self.root = found[0].removesuffix(MANIFEST)

    def has(self, name: str) -> bool:
        """Whether there is a file `name`."""
        return self.root + name in self.sizes

    def read(self, name: str) -> bytes:
        """The content of the file `name`, of at most SMALL bytes; raises WeightsError."""
        if self.sizes[self.root + name] > SMALL:
            raise WeightsError(f"{self._path}: {quoted(name)} has more than {SMALL:,} bytes")
        target = io.BytesIO()
        self.copy(name, target)
        return target.getvalue()

    def copy(self, name: str, target: IO[bytes]) -> None:
        """Write the content of the file `name` to `target`; raises WeightsError."""
        left = self.sizes[self.root + name]
        for piece in self._pieces(name):
            left -= len(piece)
            if left < 0:
                break
            target.write(piece)
        if left:
            raise WeightsError(f"{self._path}: is damaged: {quoted(name)} has another size than listed")

    def _pieces(self, name: str) -> Iterator[bytes]:
        try:
            with self._opened(self.root + name) as source:
                while piece := source.read(PIECE):
                    yield piece
        except WeightsError:
            raise
        except Exception as error:  # zipfile, zlib and others raise whatever broken bytes provoke
            raise WeightsError(
                f"{self._path}: is truncated or damaged ({quoted(error)}); download it again"
            ) from error

    def manifest(self) -> Manifest:
        """What the manifest says; raises WeightsError where it cannot be."""
        where = f"{self._path}: {MANIFEST}"
        try:
            values = documents.parse_json(self.read(MANIFEST).decode("utf-8-sig"))
        except ValueError as error:  # also what is no UTF-8
            raise WeightsError(f"{where}: {error}") from error
        model = values.get("model") if isinstance(values, dict) else None
        if not isinstance(model, dict):
            raise WeightsError(f"{where}: does not describe a `model`")

        def text(key: str) -> str | None:
            value = model.get(key)
            if value is not None and not (isinstance(value, str) and value and value.isprintable()):
                raise WeightsError(f"{where}: model.{key} must be text, not {quoted(repr(value))}")
            if value is not None and len(value) > MAX_WORD:
                raise WeightsError(f"{where}: model.{key} has more than {MAX_WORD} characters")
            return value

        def file(key: str) -> str | None:
            name = text(key)
            if name and (PurePosixPath(name).name != name or name in (".", "..") or "\\" in name):
                raise WeightsError(f"{where}: model.{key} must be the name of a file, not {quoted(name)}")
            return name

        weights = file("serializedFile")
        if weights is None:
            raise WeightsError(
                f"{where}: names no serializedFile, so the archive contains no weights; its handler "
                "gets them from elsewhere"
            )
        if not self.has(weights):
            raise WeightsError(f"{where}: names the weights {quoted(weights)}, which are not in the archive")
        return Manifest(
            name=text("modelName") or "",
            version=text("modelVersion") or "1",
            weights=weights,
            handler=text("handler") or "",
            code=file("modelFile"),
            requirements=file("requirementsFile"),
            config=file("configFile"),
        )

    def labels(self) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
        """One label a class of `index_to_name.json`, and the classes that have none; None without the file.

        A class without a label has its index. Of several names for a class, the last counts, as for
        TorchServe. Raises WeightsError.
        """
        if not self.has(LABELS):
            return None
        try:
            values = documents.parse_json(self.read(LABELS).decode("utf-8-sig"))
            names = dict(_labels(values))
        except ValueError as error:
            raise WeightsError(f"{self._path}: {LABELS}: {error}") from error
        count = max(names) + 1
        if count > 2 * len(names):
            raise WeightsError(f"{self._path}: {LABELS}: names less than half of the classes")
        missing = tuple(index for index in range(count) if index not in names)
        return tuple(names.get(index, str(index)) for index in range(count)), missing


def _labels(values: Any) -> Iterator[tuple[int, str]]:
    """Index and label of each class; raises ValueError."""
    if isinstance(values, dict) and isinstance(values.get("object_type_names"), list):
        values = dict(enumerate(values["object_type_names"]))
    if not isinstance(values, dict) or not values:
        raise ValueError('must be a mapping of index to label, such as {"0": "cat"}')
    for key, value in values.items():
        label = value[-1] if isinstance(value, list) and value else value
        if not isinstance(label, str) or not label:
            raise ValueError(f"the label of class {quoted(key)} must be text, or a list of texts")
        if not (isinstance(key, int) or (key.isascii() and key.isdecimal() and len(key) < 8)):
            raise ValueError(f"{quoted(repr(key))} must be the index of a class")
        yield int(key), whole(label)


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The archive at `path`: a .mar, a .tar.gz, or a folder.

    Raises:
        WeightsError: it is none, is damaged, unpacks to too much, or holds links or names that lead outside.
    """
    if path.is_dir():
        yield _folder(path)
        return
    try:
        file = regular_files.open_regular(path)
    except OSError as error:
        raise WeightsError(f"{quoted(path)}: cannot be read: {error.strerror}") from error
    with file:
        head = file.read(512)
        most = RATIO * file.seek(0, os.SEEK_END) + SLACK
        file.seek(0)
        if head.startswith(b"PK\x03\x04"):
            yield _zip(path, file, most)
        elif head.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield _tar(path, cast("IO[bytes]", unpacked), most)
        elif head[257:262] == b"ustar":
            yield _tar(path, file, most)
        else:
            raise WeightsError(f"{path}: is neither a .mar nor a .tar.gz archive of torch-model-archiver")


def _checked(path: Path, name: str) -> str:
    """A file's name in an archive, without `./` before it; raises WeightsError where it leads out of it."""
    parts = PurePosixPath(name).parts
    if not name or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise WeightsError(
            f"{path}: names a file outside of the archive, {quoted(name)}; nothing was unpacked"
        )
    return "/".join(parts)


def _zip(path: Path, file: IO[bytes], most: float) -> Archive:
    if formats.directory_size(file) > DIRECTORY:
        raise WeightsError(f"{path}: has more than {ENTRIES} files")
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # zipfile raises whatever broken bytes provoke
        raise WeightsError(f"{path}: is truncated or damaged ({quoted(error)}); download it again") from error
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = _checked(path, entry.filename)
        if entry.is_dir():
            continue
        if stat.S_ISLNK(entry.external_attr >> 16) or entry.flag_bits & 1 or name in entries:
            what = "encrypted" if entry.flag_bits & 1 else "a link" if name not in entries else "there twice"
            raise WeightsError(f"{path}: {quoted(name)} is {what}; nothing was unpacked")
        entries[name] = entry
    sizes = {name: entry.file_size for name, entry in entries.items()}
    return Archive(path, sizes, lambda name: archive.open(entries[name]), most)


class _Bounded(io.RawIOBase):
    """A stream of which only so much is read, in pieces of a bounded size."""

    def __init__(self, path: Path, stream: IO[bytes], most: float) -> None:
        self._path, self._stream, self._most = path, stream, most

    def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes; raises WeightsError where that is more than a piece, or too far."""
        if not 0 <= size <= 2 * PIECE:  # a header that claims to be long would be read at once
            raise WeightsError(f"{self._path}: has a header that is too long; nothing was unpacked")
        self._check(self._stream.tell() + size)
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to `offset`; raises WeightsError where that is too far."""
        self._check(offset)
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._stream.tell()

    def _check(self, position: int) -> None:
        if position > self._most:
            raise WeightsError(
                f"{self._path}: unpacks to more than {RATIO} times its size, so nothing was unpacked"
            )


def _tar(path: Path, stream: IO[bytes], most: float) -> Archive:
    try:
        archive = tarfile.open(fileobj=_Bounded(path, stream, most), mode="r:")  # noqa: SIM115
        entries = _entries(path, archive)
    except WeightsError:
        raise
    except Exception as error:  # gzip, zlib and tarfile raise whatever broken bytes provoke
        raise WeightsError(f"{path}: is truncated or damaged ({quoted(error)}); download it again") from error

    def read(name: str) -> IO[bytes]:
        found = archive.extractfile(entries[name])
        assert found is not None
        return found

    return Archive(path, {name: entry.size for name, entry in entries.items()}, read, most)


def _entries(path: Path, archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    entries: dict[str, tarfile.TarInfo] = {}
    for entry in archive:
        name = _checked(path, entry.name)
        if entry.isdir():
            continue
        if not entry.isreg() or entry.issparse() or name in entries:
            what = "there twice" if name in entries else "a link, or another special file"
            raise WeightsError(f"{path}: {quoted(name)} is {what}; nothing was unpacked")
        entries[name] = entry
        if len(entries) > ENTRIES:
            raise WeightsError(f"{path}: has more than {ENTRIES} files")
    return entries


def _folder(path: Path) -> Archive:
    sizes: dict[str, int] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            try:
                regular_files.check(file, 2**62, path)
            except OSError as error:
                raise WeightsError(f"{quoted(file)}: {error.strerror}") from error
            sizes[file.relative_to(path).as_posix()] = file.stat().st_size
            if len(sizes) > ENTRIES:
                raise WeightsError(f"{path}: has more than {ENTRIES} files")
    return Archive(path, sizes, lambda name: regular_files.open_regular(path / name), float("inf"))
