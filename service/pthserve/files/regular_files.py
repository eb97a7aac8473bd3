"""Regular files: read untrusted paths safely, with limits on file type, size and optionally folder."""

import errno
import hashlib
import io
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

IMAGE = 64 * 2**20
"""Maximum size of an image file in bytes."""
PIECE = 2**24
"""Bytes of a file that are in memory at the same time while it is hashed."""


def read(path: Path, most: int, within: Path | None = None) -> bytes:
    """Return the content of the regular file at `path`. It never waits for a pipe or a device.

    Args:
        most: Maximum number of bytes.
        within: The folder that must contain the file after all symbolic links are resolved. So links that
            Kubernetes creates inside a mounted folder are allowed, and links out of it are not.

    Raises:
        OSError: Its `strerror` states what is wrong with the file.
    """
    descriptor, size = _allowed(path, most, within)
    try:
        # One call, since each lets other threads take Python's lock. `most + 1` would allocate as much.
        data = os.read(descriptor, size + 1)
        if len(data) != size:  # it has changed, or the file system returns less at once
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data += file.read(most + 1 - len(data))
    finally:
        os.close(descriptor)
    if len(data) > most:
        raise _too_large(most)
    return data


def check(path: Path, most: int, within: Path | None = None) -> None:
    """Raise the same OSError as `read`, without reading the content."""
    os.close(_allowed(path, most, within)[0])


def _allowed(path: Path, most: int, within: Path | None) -> tuple[int, int]:
    """Open the file, and return its descriptor and its size."""
    try:
        if within is not None and not path.resolve().is_relative_to(within.resolve()):
            raise OSError(errno.EACCES, f"lies outside of the folder {within}")
        descriptor, size = _opened(path)
    except (ValueError, RuntimeError) as error:  # a NUL in the name, a loop of links
        raise OSError(errno.EINVAL, f"cannot be the name of a file: {error}") from error
    if size > most:
        os.close(descriptor)
        raise _too_large(most)
    return descriptor, size


def _too_large(most: int) -> OSError:
    return OSError(errno.EFBIG, f"is larger than the {most:,} bytes that are allowed")


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open the regular file at `path` for reading; raises OSError for anything else."""
    return os.fdopen(_opened(path)[0], "rb")


def _opened(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Open the regular file at `path`, and return its descriptor and its size."""
    _check(os.stat(path), path)  # before it is opened: opening a device may start it  # noqa: PTH116
    # If the file is replaced by a pipe meanwhile, opening it without O_NONBLOCK could wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        _check(status, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


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
    """Read `file` to its end, and return the SHA-256 as 64 hexadecimal digits and the number of bytes read.

    The file is not mapped: if it were truncated meanwhile, the process would end.

    Args:
        use: Called with each piece, which is overwritten afterwards.
        piece: Number of bytes to read at once. Large pieces wait less often for Python's lock, which imports
            hold while a service starts.
        limit: Stop after more than this number of bytes, for files that keep growing.
    """
    digest, done = hashlib.sha256(), 0
    size = max(1, min(piece, os.fstat(file.fileno()).st_size))
    # Mapped, since what is freed of an allocation may stay in the process until it is idle.
    buffer = memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    while (limit is None or done <= limit) and (count := file.readinto(buffer)):
        digest.update(buffer[:count])
        if use is not None:
            use(buffer[:count])
        done += count
    return digest.hexdigest(), done


def _check(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
