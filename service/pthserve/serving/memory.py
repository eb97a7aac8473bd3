"""Memory: return freed memory to the operating system.

glibc keeps up to 64 MiB of freed memory at the end of each of its arenas, and all freed memory between blocks
in use. So after a burst of large photos, the service would seem to need that memory for ever. Threads create
several arenas, but `malloc_trim` returns only the end of the first one (glibc 2.36, malloc.c: mtrim). So all
threads share that one.
"""

import asyncio
import ctypes
from collections.abc import Callable

from pthserve.serving.background import in_background

EVERY = 10.0
"""Seconds to wait after memory was returned."""
SOON = 0.1
"""Seconds between two checks whether the service is idle."""

_M_ARENA_MAX = -8
"""The parameter of mallopt: glibc's malloc.h."""

_LIBC = ctypes.CDLL(None)
"""The C library. Others than glibc keep little freed memory, and lack the functions that are called here."""


def share_an_arena() -> None:
    """Make all threads share one arena; must be called before threads start."""
    limit = getattr(_LIBC, "mallopt", None)
    if limit is not None:
        limit(_M_ARENA_MAX, 1)


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
