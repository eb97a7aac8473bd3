"""Exits: the codes that the process ends with, and an end that nothing holds up."""

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
"""The first that fits counts. click exits with 2 on wrong usage, and with 1 on what a command cannot do."""
DIFFERENT = 5
"""What `pthserve compare` exits with where the user's function and the model differ."""
FLUSH_SECONDS = 1.0
"""How long the last message may take: standard error may be a pipe that nobody reads."""


def code(error: PthserveError) -> int:
    """The exit code that says what `error` is."""
    return next(number for kind, number in EXIT_CODES if isinstance(error, kind))


def leave(code: int, message: str = "") -> NoReturn:
    """End the process with `code`, after `message` on standard error.

    Python's own end is not waited for: a library that still computes in a thread, such as a load that nobody
    needs any more, aborts the process when Python takes itself down beneath it.
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
