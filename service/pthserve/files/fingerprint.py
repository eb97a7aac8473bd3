"""Fingerprint: detect changes of a model's files without reading them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

Fingerprint = frozenset[tuple[str, int, int, int]]
"""The names of a model's files, each with inode, size and modification time in nanoseconds."""

DEPTH = 3
"""Maximum depth of folders below the model's folder that are searched."""


def fingerprint(path: Path) -> Fingerprint:
    """Return the fingerprint of the model at `path`: of all files in a folder, or of a file and its card.

    No file is read. Symbolic links are followed, so that updates of a Kubernetes volume are noticed. Hidden
    names are ignored: there Kubernetes keeps the old and the new version.
    """
    files = _files(path, DEPTH) if path.is_dir() else _with_card(path)
    return frozenset(seen for file in files for seen in _stat(file))


def _with_card(path: Path) -> Sequence[Path]:
    from pthserve.files.card import FILE  # imported only here: folders and packed models do not need it

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
        status = os.stat(file)  # noqa: PTH116
        yield os.fspath(file), status.st_ino, status.st_size, status.st_mtime_ns
