"""Copies: files read once and hashed on the way, and kept where nobody else can change them.

What is mapped, or read a second time, may be another file by then: written over, or cut short, which ends a
process that has it mapped. So what was hashed is copied, and the copy is what is used.
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
    """A file without a name, for as long as this object or a mapping of the file exists.

    It lies in the folder for temporary files, so that its pages need not stay in memory; in memory where that
    folder cannot hold it. Its mappings are called `*.bin (deleted)`; see `engine.pages`.

    size: bytes that it is to hold.
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
        """By which this process opens it."""
        return Path(f"/proc/self/fd/{self._descriptor}")

    def write(self, data: memoryview) -> None:
        """Append `data`."""
        while data:
            data = data[os.write(self._descriptor, data) :]

    def end(self) -> None:
        """Cut off what was asked for and not written."""
        os.ftruncate(self._descriptor, os.lseek(self._descriptor, 0, os.SEEK_CUR))


def copy(path: Path) -> tuple[str, Copy]:
    """SHA-256 of the file at `path`, and its copy; raises as `opened` does."""
    with opened(path) as file:
        made = Copy(os.fstat(file.fileno()).st_size)
        digest, _ = regular_files.hash_rest(file, made.write)
        made.end()
        return digest, made


def sha256(path: Path) -> str:
    """SHA-256 of the file at `path`; raises as `opened` does."""
    with opened(path) as file:
        digest, _ = regular_files.hash_rest(file)
    return digest


def content(path: Path, digest: str | None, most: int) -> bytes:
    """The bytes of the file at `path`.

    digest: the SHA-256 that they must have, where it is known. most: bytes that are allowed.
    Raises:
        PackError: there are more, or others; else as `opened` does.
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
    """The regular file at `path`, open for reading.

    Raises:
        PackError: it is a pipe, a device or a socket, which may never end. OSError: it cannot be read.
    """
    try:
        file = regular_files.open_regular(path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise PackError(f"{path}: {error.strerror}; remove it, or copy the packed model again") from error
    with file:
        yield file
