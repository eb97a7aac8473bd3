"""Exits: the exit codes, and ending the process without waiting for other threads."""

import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from pthserve.errors import GoldenError, ModelError, PthserveError

EXIT_CODES: tuple[tuple[type[PthserveError], int], ...] = (
    (GoldenError, 4),
    (ModelError, 3),
    (PthserveError, 1),
)
"""The first class that fits counts. click exits with 2 on wrong usage."""
DIFFERENT = 5
"""What `pthserve compare` exits with where the user's function and the model differ."""
IMAGES_FAILED = 6
"""What `pthserve score` exits with where more images than `--max-errors` have an error."""
FLUSH_SECONDS = 1.0
"""Maximum time in seconds for the last message: standard error may be a pipe that nobody reads."""


def code(error: PthserveError) -> int:
    """Return the exit code for `error`."""
    return next(number for kind, number in EXIT_CODES if isinstance(error, kind))


def leave(code: int, message: str = "") -> NoReturn:
    """Print `message` to standard error and end the process with `code`.

    Python's own finalisation is skipped: a library that still computes in a thread, such as a load that is no
    longer needed, would abort the process during it.
    """
    writing = threading.Thread(target=_write, args=(message,), daemon=True)
    writing.start()
    writing.join(FLUSH_SECONDS)
    os._exit(code)


def _write(message: str) -> None:
    with suppress(OSError, ValueError):  # a stream that is closed, or on a full disk
        sys.stdout.flush()
        if message:
            print(message, file=sys.stderr)  # noqa: T201
        sys.stderr.flush()
