"""Memory: little of what was freed is kept by the C library, and given back while there is nothing to do.

glibc keeps up to 64 MiB of it at the end of each of its arenas, of which threads make several, and all that
lies between what is still in use: after a burst of large photos a service would seem to need that for ever.
What lies at an arena's end `malloc_trim` gives back of the first arena only (glibc 2.36, malloc.c: mtrim), so
there is none but that.
"""

import asyncio
import ctypes
from collections.abc import Callable

from pthserve.serving.background import in_background

EVERY = 10.0
"""Seconds between giving back, and the next look at whether there is nothing to do."""
SOON = 0.1
"""Seconds between two looks, where there is something to do."""

_M_ARENA_MAX = -8
"""glibc's malloc.h."""

_LIBC = ctypes.CDLL(None)
"""Other libraries than glibc keep little, and lack what is called here."""


def share_an_arena() -> None:
    """Have all threads share one arena; to be called before there are threads."""
    limit = getattr(_LIBC, "mallopt", None)
    if limit is not None:
        limit(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Give back what is free; a few milliseconds in which other threads may wait for memory."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)


async def give_back_when(idle: Callable[[], bool]) -> None:
    """Give back what is free, now and then, where `idle` says so; does not end."""
    given = True
    while True:
        await asyncio.sleep(EVERY if given else SOON)
        given = idle()
        if given:
            await in_background(give_back)
