"""Scratch: temporary folders, which the next run removes if a run was killed."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "pthserve-score-"
YOUNG = 60.0
"""Age in seconds of a folder below which it may be of a run that has not locked it yet."""


@contextmanager
def folder() -> Iterator[Path]:
    """Make a temporary folder for the block, after those that killed runs left are removed.

    A run holds a lock on its folder, which ends with its process.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, _locked(Path(name)):
        yield Path(name)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of this user's runs that are not running any more."""
    for path in parent.glob(f"{PREFIX}*"):
        try:
            found = path.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < YOUNG:
                continue
            with _locked(path):
                shutil.rmtree(path)
        except OSError:  # it is in use, or another run removes it at the same time
            continue


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a folder; raises BlockingIOError if another process does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
