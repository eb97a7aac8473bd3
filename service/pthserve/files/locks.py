"""Locks: files that processes lock, so that what is beside them is written by one at a time."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Self


class Lock:
    """The lock of a file, held until `release` or the end of a `with` block, or of the process.

    The file is created if it is missing. A symbolic link is not followed.

    Args:
        shared: Whether others may hold the lock as well, if they ask for it as shared.
        wait: Whether to wait until the lock is free.
        mode: Of a file that is created, less the umask.

    Raises:
        BlockingIOError: The lock is not free, and `wait` is false.
        OSError: The file cannot be opened, or its file system has no locks.
    """

    def __init__(self, file: Path, *, shared: bool = False, wait: bool = True, mode: int = 0o600) -> None:
        self._file = file
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(self._descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def is_in_place(self) -> bool:
        """Return whether the file that is locked still has its name; another process may have removed it."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), self._file.stat(follow_symlinks=False))
        return False

    def share(self) -> None:
        """Let others hold the lock as well, as shared."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)
