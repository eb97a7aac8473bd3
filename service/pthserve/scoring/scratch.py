"""Scratch: temporary folders, which the next run removes if a run was killed."""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pthserve.files.locks import Lock

PREFIX = "pthserve-score-"
YOUNG = 60.0
"""Age in seconds of a folder below which it may be of a run that has not locked it yet."""


@contextmanager
def folder() -> Iterator[Path]:
    """Make a temporary folder for the block, after those that killed runs left are removed.

    A run holds the lock of a file in its folder, which ends with its process.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, _lock(Path(name)):
        yield Path(name)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of this user's runs that are not running any more."""
    for path in parent.glob(f"{PREFIX}*"):
        try:
            found = path.lstat()
            own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if own and time.time() - found.st_mtime >= YOUNG:
                with _lock(path):
                    shutil.rmtree(path)
        except OSError:  # it is in use, or another run removes it at the same time
            continue


def _lock(path: Path) -> Lock:
    """Lock a folder; raises BlockingIOError if another process has."""
    return Lock(path / "lock", wait=False)
