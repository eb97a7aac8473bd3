"""Fingerprint: what changes when a model's files do, without a look into them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

Fingerprint = frozenset[tuple[str, int, int, int]]
"""A model's files by name, with inode, size and time of change."""

DEPTH = 3
"""How many folders below a model's folder are looked into."""


def fingerprint(path: Path) -> Fingerprint:
    """What changes when a file of the model at `path` does: of a folder all files, of a file it and its card.

    Nothing is read. Symbolic links are followed, so that what Kubernetes swaps shows; hidden names, among
    which it keeps old and new, do not count.
    """
    files = _files(path, DEPTH) if path.is_dir() else _with_card(path)
    return frozenset(seen for file in files for seen in _stat(file))


def _with_card(path: Path) -> Sequence[Path]:
    from pthserve.files.card import FILE  # which a folder has in it, and a packed model none

    return (path, path.parent / FILE)


def _files(folder: str | os.PathLike[str], depth: int) -> Iterator[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__")):
                continue
            if not entry.is_dir():
                yield entry.path
            elif depth:
                yield from _files(entry.path, depth - 1)


def _stat(file: str | os.PathLike[str]) -> Iterator[tuple[str, int, int, int]]:
    with suppress(OSError):
        found = os.stat(file)  # noqa: PTH116
        yield os.fspath(file), found.st_ino, found.st_size, found.st_mtime_ns
