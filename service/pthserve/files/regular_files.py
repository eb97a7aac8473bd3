"""Files that others wrote: only regular ones are read, up to a size, and within a folder if one is given."""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

IMAGE = 64 * 2**20
"""Most bytes of an image file."""
PIECE = 2**26
"""Bytes of a file that are in memory at once while it is hashed."""


def read(path: Path, most: int, within: Path | None = None) -> bytes:
    """The content of the regular file at `path`, of at most `most` bytes.

    within: the folder that the file must lie in, once every symbolic link is followed. So the links that
    Kubernetes makes inside a mounted folder are followed, and those that lead out of it are not.
    Raises OSError, whose `strerror` says what is wrong with the file. It never waits for a pipe or a device.
    """
    with _allowed(path, most, within) as file:
        data = file.read(most + 1)  # one byte more, as a file may grow
    if len(data) > most:
        raise _too_large(most)
    return data


def check(path: Path, most: int, within: Path | None = None) -> None:
    """Raise the OSError that `read` would, but for what shows only while the content is read."""
    _allowed(path, most, within).close()


def _allowed(path: Path, most: int, within: Path | None) -> io.BufferedReader:
    try:
        if within is not None and not path.resolve().is_relative_to(within.resolve()):
            raise OSError(errno.EACCES, f"lies outside of the folder {within}")
        file = open_regular(path)
    except (ValueError, RuntimeError) as error:  # a NUL in the name, a loop of links
        raise OSError(errno.EINVAL, f"cannot be the name of a file: {error}") from error
    if os.fstat(file.fileno()).st_size > most:
        file.close()
        raise _too_large(most)
    return file


def _too_large(most: int) -> OSError:
    return OSError(errno.EFBIG, f"is larger than the {most:,} bytes that are allowed")


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """The regular file at `path`, open for reading; raises OSError for anything else."""
    _check(os.stat(path), path)  # before it is opened, as to open a device may set it going  # noqa: PTH116
    # Without O_NONBLOCK the opening of a pipe, put there meanwhile, waits for its writer, perhaps for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of the regular file at `path`, as 64 hexadecimal digits; raises OSError."""
    with open_regular(path) as file:
        return hash_rest(file)[0]


def hash_rest(
    file: io.BufferedReader,
    use: Callable[[memoryview], object] | None = None,
    *,
    piece: int = PIECE,
    limit: int | None = None,
) -> tuple[str, int]:
    """Read `file` to its end; the SHA-256 of what was read, as 64 hexadecimal digits, and its bytes.

    The file is not mapped: if it were cut short meanwhile, the process would end.

    Args:
        use: called with each piece; the piece is overwritten afterwards.
        piece: bytes to read at once. After each, Python's lock must be had again, and the imports of a
            service that starts hold it: large pieces wait less often.
        limit: stop once more than so many bytes were read, as from a file that grows without end.
    """
    digest, done = hashlib.sha256(), 0
    buffer = memoryview(bytearray(max(1, min(piece, os.fstat(file.fileno()).st_size))))
    while (limit is None or done <= limit) and (count := file.readinto(buffer)):
        digest.update(buffer[:count])
        if use is not None:
            use(buffer[:count])
        done += count
    return digest.hexdigest(), done


def _check(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
