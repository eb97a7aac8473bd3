"""Memory: little of what was freed is kept by the C library, and given back while there is nothing to do.

glibc keeps up to 64 MiB of it at the end of each of its arenas, of which threads make several, and all that
lies between what is still in use: after a burst of large photos a service would seem to need that for ever.
"""

import asyncio
import ctypes
from collections.abc import Callable

from pthserve.serving.background import in_background

EVERY = 10.0
"""Seconds between two looks at whether there is nothing to do."""

ARENAS = 4
"""Where glibc made eight a core, 12,000 requests of all kinds left 105 MiB in them; in four, 49."""
_M_ARENA_MAX = -8
"""glibc's malloc.h."""

_LIBC = ctypes.CDLL(None)
"""Other libraries than glibc keep little, and lack what is called here."""


def share_arenas() -> None:
    """Have all threads share ARENAS arenas; to be called before there are threads."""
    limit = getattr(_LIBC, "mallopt", None)
    if limit is not None:
        limit(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Give back what is free; a few milliseconds in which other threads may wait for memory."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)


async def give_back_when(idle: Callable[[], bool]) -> None:
    """Give back what is free, now and then, where `idle` says so; does not end."""
    while True:
        await asyncio.sleep(EVERY)
        if idle():
            await in_background(give_back)
