"""Mapped pages: weights that are mapped into memory leave it once the compiled graphs have what they need.

Compiling a graph reads all of its weights, and so does the first pass, which rearranges them for the
processor. Pages that were read would stay in the memory of the process, beside the rearranged weights.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

EVERY = 0.02
"""Seconds between two releases while graphs are compiled; one takes about 1 ms."""

_MADV_DONTNEED = 4
"""Of Linux' <asm-generic/mman-common.h>: the pages leave the process, and come back when they are touched."""


def release(*suffixes: str) -> None:
    """Release the pages of each file with one of `suffixes` that is mapped for reading alone.

    A file that has no name any more counts by its last one. What is read again comes from the page cache, or
    from the file. Where there is no Linux, nothing happens.
    """
    with suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for begin, end in _mapped(suffixes):
            madvise(begin, end - begin, _MADV_DONTNEED)


@contextmanager
def releasing(*suffixes: str) -> Iterator[None]:
    """Do what `release` does every EVERY seconds during the block, and at its end."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(EVERY):
            release(*suffixes)

    thread = threading.Thread(target=repeat, name="mapped pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        release(*suffixes)


def _mapped(suffixes: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        where, rights, *_, name = line.split(maxsplit=5)
        if rights in ("r--s", "r--p") and name.removesuffix(" (deleted)").endswith(suffixes):
            begin, _, end = where.partition("-")
            yield int(begin, 16), int(end, 16)
