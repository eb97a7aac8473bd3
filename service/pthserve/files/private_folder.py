"""Private folders: cache folders whose content is trusted only if no other user may write to them."""

import os
import stat
from pathlib import Path


def private(folder: Path) -> str | None:
    """Create `folder` with mode 700 if it is missing, and return why its content cannot be trusted, or None.

    It must belong to this process's user, and no other user may write to it. A symbolic link is not trusted:
    the user who created it could change its target.
    """
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        return error.strerror or type(error).__name__
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        return f"users other than {os.geteuid()} may write to it; remove it, or set its mode to 700"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "it cannot be written to"
    return None
