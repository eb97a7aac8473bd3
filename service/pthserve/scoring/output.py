"""Output: a folder or an object store, in which a file of a data set is complete or does not exist."""

import io
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from pthserve.addresses import is_address
from pthserve.errors import PthserveError, WeightsError
from pthserve.scoring import scratch
from pthserve.sources.reference import STORES, Reference, parse
from pthserve.sources.transfer import retried

T = TypeVar("T")
_LEFT = ".tmp"
"""The end of the name of a file that is being written."""


class Output(Protocol):
    """A place for files. All methods raise PthserveError if it cannot be read or written."""

    def names(self) -> set[str]:
        """Return the names of the complete files."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if there is no file of that name."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """Open a file, which may be read in any order."""
        ...

    def writing(self, name: str) -> Any:
        """Return a context manager with a path to write to.

        The file gets its name when the block ends without an error. It replaces any file of that name.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        ...

    def tidy(self, prefix: str) -> None:
        """Remove incomplete files of killed processes, if their names begin with `prefix`."""
        ...


def output(place: str) -> Output:
    """The folder, or the objects below a key, that `place` names."""
    if not is_address(place):
        return Folder(Path(place))
    try:
        reference = parse(place)
        assert reference is not None
        if reference.scheme not in STORES:
            raise PthserveError(f"{reference}: results are written to a folder, s3://, gs:// or az://")
        return Bucket(reference)
    except WeightsError as error:
        raise PthserveError(str(error)) from error


class Folder:
    """A folder of this machine, which is created if it is missing; see `Output`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors():
            path.mkdir(parents=True, exist_ok=True)

    def names(self) -> set[str]:
        """See `Output`."""
        with self._errors():
            return {one.name for one in os.scandir(self._path) if not one.name.endswith(_LEFT)}

    def read(self, name: str) -> bytes | None:
        """See `Output`."""
        with self._errors():
            try:
                return (self._path / name).read_bytes()
            except FileNotFoundError:
                return None

    def open(self, name: str) -> IO[bytes]:
        """See `Output`."""
        with self._errors():
            return (self._path / name).open("rb")

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """See `Output`. The bytes are on the disk before the file gets its name."""
        part = self._path / f".{name}.{uuid.uuid4().hex}{_LEFT}"
        try:
            yield part
            with self._errors():
                with part.open("rb") as file:
                    os.fsync(file.fileno())
                part.replace(self._path / name)
                folder = os.open(self._path, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """See `Output`."""
        with self._errors():
            (self._path / name).unlink(missing_ok=True)

    def tidy(self, prefix: str) -> None:
        """See `Output`."""
        with self._errors():
            for one in self._path.glob(f".{prefix}*{_LEFT}"):
                one.unlink(missing_ok=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PthserveError(
                f"{self._path}: the results cannot be written here: {error.strerror or error}"
            ) from error


class _Object(io.RawIOBase):
    """An object as a file. read: returns bytes of it, by offset and number. size: its size in bytes."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        buffer[:length] = self._read(self._at, length) if length else b""
        self._at += length
        return length


class Bucket:
    """The objects below a key of an object store; see `Output`. An object exists only once it is complete."""

    def __init__(self, reference: Reference) -> None:
        from pthserve.sources import object_stores

        self._reference = reference
        self._store = object_stores.connected(reference)
        self._key = reference.path.strip("/")

    def names(self) -> set[str]:
        """See `Output`."""
        import obstore

        def listed() -> set[str]:
            prefix = f"{self._key}/" if self._key else ""
            return {
                one["path"].removeprefix(prefix)
                for batch in obstore.list(self._store, prefix=self._key or None)
                for one in batch
                if one["path"].startswith(prefix)
            }

        return self._tried(listed)

    def read(self, name: str) -> bytes | None:
        """See `Output`."""
        import obstore

        def content() -> bytes | None:
            try:
                return bytes(obstore.get(self._store, self._at(name)).bytes())
            except FileNotFoundError:
                return None

        return self._tried(content)

    def open(self, name: str) -> IO[bytes]:
        """See `Output`."""
        import obstore

        place = self._at(name)
        size = self._tried(lambda: obstore.head(self._store, place)["size"])

        def read(start: int, length: int) -> bytes:
            return self._tried(
                lambda: bytes(obstore.get_range(self._store, place, start=start, length=length))
            )

        return _Object(read, size)  # type: ignore[return-value]

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """See `Output`. The file is written to a temporary folder of this machine, and then sent."""
        import obstore

        with scratch.folder() as folder:
            path = folder / name
            yield path
            self._tried(lambda: obstore.put(self._store, self._at(name), path))

    def remove(self, name: str) -> None:
        """See `Output`."""
        import obstore

        with suppress(FileNotFoundError):
            self._tried(lambda: obstore.delete(self._store, self._at(name)))

    def tidy(self, prefix: str) -> None:
        """Do nothing; see `Output`."""

    def _at(self, name: str) -> str:
        return f"{self._key}/{name}" if self._key else name

    def _tried(self, attempt: Callable[[], T]) -> T:
        """Return the result of `attempt`, which is repeated if the network fails."""
        from pthserve.sources import object_stores

        def once() -> T:
            with object_stores.errors(self._reference):
                return attempt()

        try:
            return retried(once, str(self._reference))
        except WeightsError as error:
            reason = error.__cause__ or error  # after several attempts, the reason of the last one
            raise PthserveError(
                f"{self._reference}: the results cannot be read or written here: {reason}"
            ) from error
