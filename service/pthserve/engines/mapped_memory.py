"""Pages: the memory of files that are mapped and only looked into now and then."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

MADV_DONTNEED = 4
"""Of Linux' <asm-generic/mman-common.h>: the pages leave the process, and come back when they are touched."""


def give_back(*suffixes: str) -> None:
    """Let go of the pages of each file with one of `suffixes` that is mapped for reading alone.

    A file that has no name any more counts by its last one.

    What is read again comes from the page cache, or from the file. Where there is no Linux, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for begin, end in _mapped(suffixes):
            madvise(begin, end - begin, MADV_DONTNEED)


def _mapped(suffixes: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        where, rights, *_, name = line.split(maxsplit=5)
        if rights in ("r--s", "r--p") and name.removesuffix(" (deleted)").endswith(suffixes):
            begin, _, end = where.partition("-")
            yield int(begin, 16), int(end, 16)
