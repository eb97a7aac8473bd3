"""Copies: private copies of files, which are hashed while they are copied.

A file that is mapped into memory, or read twice, may change meanwhile; if it is truncated, a process that has
mapped it is ended. So the bytes that were hashed are copied, and only the copy is used.
"""

import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pthserve.errors import PackError
from pthserve.files import regular_files


class Copy:
    """A file without a name, which exists as long as this object or a mapping of the file.

    It is in the folder for temporary files, so that its pages need not stay in memory, or in memory if that
    folder has too little space. Its mappings are called `*.bin (deleted)`, by which
    `engines.openvino_engine` recognises them.

    Args:
        size: Maximum number of bytes that it will contain.
    """

    def __init__(self, size: int) -> None:
        try:
            with tempfile.NamedTemporaryFile(suffix=".bin", buffering=0) as file:
                if size:
                    os.posix_fallocate(file.fileno(), 0, size)
                self._descriptor = os.dup(file.fileno())
        except OSError:
            self._descriptor = os.memfd_create("copy.bin")

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    @property
    def path(self) -> Path:
        """The path by which this process can open it."""
        return Path(f"/proc/self/fd/{self._descriptor}")

    def write(self, data: memoryview) -> None:
        """Append `data`."""
        while data:
            data = data[os.write(self._descriptor, data) :]

    def end(self) -> None:
        """Truncate the file to the bytes that were written."""
        os.ftruncate(self._descriptor, os.lseek(self._descriptor, 0, os.SEEK_CUR))


def copy(path: Path) -> tuple[str, Copy]:
    """Return the SHA-256 of the file at `path`, and a copy of it; raises as `opened`."""
    with opened(path) as file:
        made = Copy(os.fstat(file.fileno()).st_size)
        digest, _ = regular_files.hash_rest(file, made.write)
        made.end()
        return digest, made


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file at `path`; raises as `opened`."""
    with opened(path) as file:
        digest, _ = regular_files.hash_rest(file)
    return digest


def content(path: Path, digest: str | None, most: int) -> bytes:
    """Return the content of the file at `path`.

    Args:
        digest: Its expected SHA-256, or None.
        most: Maximum number of bytes.

    Raises:
        PackError: It is larger, or has another SHA-256.
        OSError: As `opened`.
    """
    with opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise PackError(f"{path}: is larger than {most} bytes, which is the limit")
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise PackError(f"{path}: changed while it was being read; copy the packed model again")
    return data


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open the regular file at `path` for reading.

    Raises:
        PackError: It is a pipe, a device or a socket, which may never end.
        OSError: It cannot be read.
    """
    try:
        file = regular_files.open_regular(path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise PackError(f"{path}: {error.strerror}; remove it, or copy the packed model again") from error
    with file:
        yield file
