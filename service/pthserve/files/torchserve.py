"""TorchServe: read model archives of `torch-model-archiver`, without running any code in them.

An archive is a `.mar` file (zip), a `.tar.gz` file (format `tgz`) or a folder (format `no-archive`), with the
same files in each. `MAR-INF/MANIFEST.json` names the weights, the handler and the model's code.
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
"""Maximum number of files in an archive."""
DIRECTORY = 8 * 2**20
"""Maximum size of the directory of a zip archive, which zipfile keeps in memory."""
SMALL = 4 * 2**20
"""Maximum size of a manifest, of labels, and of a script that is searched for a class."""
RATIO = 50
"""Maximum ratio of unpacked to packed size. Trained weights hardly compress, to a tenth at most."""
SLACK = 64 * 2**20
"""Unpacked bytes that are allowed in addition to RATIO."""
PIECE = 2**20
"""Bytes that are copied at once."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of the model in MANIFEST.json.

    Attributes:
        weights: The name of the file with the state dict.
        handler: The name of a built-in handler of TorchServe, or of a Python file.
        code: The name of the Python file with the model's class, for an eager model.
        requirements: The name of a file that TorchServe reads when it starts.
        config: The name of another such file.
    """

    name: str
    version: str
    weights: str
    handler: str
    code: str | None = None
    requirements: str | None = None
    config: str | None = None


class Archive:
    """The files of an archive.

    Attributes:
        sizes: The unpacked size of each file in bytes, by its name.
        root: The prefix of each name in `sizes`.
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
        manifests = [
            name
            for name in sizes
            if name == MANIFEST or (name.count("/") == 2 and name.endswith(f"/{MANIFEST}"))
        ]
        if len(manifests) != 1:
            raise WeightsError(
                f"{path}: is not an archive of torch-model-archiver: it has no {MANIFEST}"
                if not manifests
                else f"{path}: has several files {MANIFEST}"
            )
        self.root = manifests[0].removesuffix(MANIFEST)

    def has(self, name: str) -> bool:
        """Return whether there is a file `name`."""
        return self.root + name in self.sizes

    def read(self, name: str) -> bytes:
        """Return the content of the file `name`, of at most SMALL bytes; raises WeightsError."""
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
        except Exception as error:  # zipfile, zlib and others raise many types for damaged archives
            raise WeightsError(
                f"{self._path}: is truncated or damaged ({quoted(error)}); download it again"
            ) from error

    def manifest(self) -> Manifest:
        """Return the manifest; raises WeightsError if it is not valid."""
        where = f"{self._path}: {MANIFEST}"
        try:
            values = documents.parse_json(self.read(MANIFEST).decode("utf-8-sig"))
        except ValueError as error:  # also for text that is not UTF-8
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
        """Return one label per class from `index_to_name.json`, and the classes without a label in it.

        A class without a label gets its index as text. If a class has several names, the last one is used, as
        in TorchServe. None if there is no such file.

        Raises:
            WeightsError: The file is not valid.
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
            raise WeightsError(f"{self._path}: {LABELS}: names fewer than half of the classes")
        missing = tuple(index for index in range(count) if index not in names)
        return tuple(names.get(index, str(index)) for index in range(count)), missing


def _labels(values: Any) -> Iterator[tuple[int, str]]:
    """Yield index and label of each class; raises ValueError."""
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
    """Open the archive at `path`: a .mar file, a .tar.gz file, or a folder.

    Raises:
        WeightsError: It is not an archive, is damaged, is too large when unpacked, or contains links or names
            that lead outside.
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
    """Return a file name without `./` before it; raises WeightsError if it leads out of the archive."""
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
    except Exception as error:  # zipfile raises many types for damaged archives
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
    """A stream with a limit on its length and on the size of one read."""

    def __init__(self, path: Path, stream: IO[bytes], most: float) -> None:
        self._path, self._stream, self._most = path, stream, most

    def read(self, size: int = -1, /) -> bytes:
        """Return the next `size` bytes; raises WeightsError if a limit is exceeded."""
        if not 0 <= size <= 2 * PIECE:  # tarfile reads a header at once, however long it claims to be
            raise WeightsError(f"{self._path}: has a header that is too long; nothing was unpacked")
        self._check(self._stream.tell() + size)
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to `offset`; raises WeightsError if that exceeds the limit."""
        self._check(offset)
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Return the position of the next byte."""
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
    except Exception as error:  # gzip, zlib and tarfile raise many types for damaged archives
        raise WeightsError(f"{path}: is truncated or damaged ({quoted(error)}); download it again") from error

    def read(name: str) -> IO[bytes]:
        file = archive.extractfile(entries[name])
        assert file is not None
        return file

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
