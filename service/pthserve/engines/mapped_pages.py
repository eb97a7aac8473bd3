"""Mapped pages: weights that are mapped into memory leave it once the compiled graphs have what they need.

Compiling a graph reads all of its weights, and so does the first pass, which rearranges them for the
processor. Pages that were read would stay in the memory of the process, beside the rearranged weights.
"""

import ctypes
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino

EVERY = 0.005
"""Seconds between two releases while a graph is compiled."""

_MADV_DONTNEED = 4
"""Of Linux' <asm-generic/mman-common.h>: the pages leave the process, and come back when they are touched."""


def release(*suffixes: str) -> None:
    """Release the pages of each file with one of `suffixes` that is mapped for reading alone.

    A file that has no name any more counts by its last one. What is read again comes from the page cache, or
    from the file. Where there is no Linux, nothing happens.
    """
    with suppress(OSError):
        _release([(begin, end) for begin, end, name in _mapped() if name.endswith(suffixes)])


def weights(graph: "openvino.Model") -> list[int]:
    """Return the addresses of the constants of `graph`."""
    constants = (node for node in graph.get_ops() if node.get_type_name() == "Constant")
    return [node.data.ctypes.data for node in constants]


@contextmanager
def releasing(addresses: Collection[int]) -> Iterator[None]:
    """Release the pages of the mapped files that contain `addresses`, every EVERY seconds during the block.

    The caller keeps these files mapped: what is mapped in their place could lose its content.
    """
    places: list[tuple[int, int]] = []
    with suppress(OSError):
        for begin, end, _ in _mapped():
            if any(begin <= address < end for address in addresses):
                places.append((begin, end))
    if not places:
        yield
        return
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(EVERY):
            _release(places)

    thread = threading.Thread(target=repeat, name="mapped pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _release(places)


def _release(places: Collection[tuple[int, int]]) -> None:
    with suppress(AttributeError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for begin, end in places:
            madvise(begin, end - begin, _MADV_DONTNEED)


def _mapped() -> Iterator[tuple[int, int, str]]:
    """Begin, end and file of what is mapped for reading alone."""
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        where, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights in ("r--s", "r--p") and inode != "0" and name:
            begin, _, end = where.partition("-")
            yield int(begin, 16), int(end, 16), name[0].removesuffix(" (deleted)")
