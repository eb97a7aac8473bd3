"""Private folders: folders of a cache, whose content counts only while nobody else may write to them."""

import os
import stat
from pathlib import Path


def private(folder: Path) -> str | None:
    """Make `folder` with mode 700 if it is not there, and return why its content cannot be trusted, or None.

    It counts only as a folder of this process's user that no other user may write to. A symbolic link does
    not: whoever made it may let it lead elsewhere.
    """
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        return error.strerror or type(error).__name__
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        return f"users other than {os.geteuid()} may write to it; remove it, or set its mode to 700"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "it cannot be written to"
    return None
