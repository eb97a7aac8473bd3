"""Memory: keep freed memory for the next request, and return it to the system when the service is idle.

glibc keeps up to 64 MiB of freed memory at the end of each of its arenas, and all freed memory between blocks
in use. So after a burst of large photos, the service would seem to need that memory for ever. Threads create
several arenas, but `malloc_trim` returns only the end of the first one (glibc 2.36, malloc.c: mtrim). So all
threads share that one.

Blocks from 128 KiB on, such as the pixels of an image, glibc returns at once, until a larger block was freed
(mallopt(3), M_MMAP_THRESHOLD). Each request would then wait for the system to clear the same pages again.
"""

import asyncio
import ctypes
from collections.abc import Callable

from pthserve.serving.background import in_background

EVERY = 10.0
"""Seconds to wait after memory was returned."""
SOON = 0.1
"""Seconds between two checks whether the service is idle."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of mallopt: glibc's malloc.h."""
_LARGEST_KEPT = 32 * 2**20
"""Bytes of the largest block that is kept: glibc's maximum (malloc.c: DEFAULT_MMAP_THRESHOLD_MAX)."""

_LIBC = ctypes.CDLL(None)
"""The C library. Others than glibc keep little freed memory, and lack the functions that are called here."""


def configure() -> None:
    """Make all threads share one arena, which keeps freed blocks; must be called before threads start."""
    option = getattr(_LIBC, "mallopt", None)
    if option is not None:
        option(_M_ARENA_MAX, 1)
        option(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        option(_M_TRIM_THRESHOLD, 2 * _LARGEST_KEPT)  # glibc's own ratio of the two


def give_back() -> None:
    """Return free memory to the operating system. For a few milliseconds, allocations may have to wait."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)


async def give_back_when(idle: Callable[[], bool]) -> None:
    """Call `give_back` every few seconds, each time as soon as `idle` returns True; never returns."""
    returned = True
    while True:
        await asyncio.sleep(EVERY if returned else SOON)
        returned = idle()
        if returned:
            await in_background(give_back)
