"""Cache: packed models in a folder, each under its key, for starts to find, make and remove.

packs/KEY/pack        a packed model, as `pthserve pack` writes it
packs/KEY/entry.json  what it was made from, and its own SHA-256
packs/KEY/plan-*.json how a processor runs it, once that was measured
packs/KEY.lock        held by whoever reads (shared) or writes (alone) the entry
packs/.KEY.*          an entry that is being written or removed

An entry appears whole: it is written beside, brought to the disk, and renamed. What a process that was killed
left behind is removed by the next one that gets the lock.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pthserve.engines.cpu import cpu
from pthserve.errors import EngineError
from pthserve.files import regular_files
from pthserve.files.locks import Lock
from pthserve.files.private_folder import private
from pthserve.options import ModelOptions
from pthserve.planning import plan_files
from pthserve.planning.plan import Plan

PACKS = "packs"
PACK, ENTRY = "pack", "entry.json"

_BYTES = 16 * 2**20
"""Most bytes of an entry.json."""


class UnusableCache(Exception):
    """The folder cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that is whole, and belongs to what is there now.

    warnings: that came while it was made: logger, level and message. needs_torch: why there is no pack but
    the model needs PyTorch in the process that serves it, or "".
    """

    folder: Path
    warnings: tuple[tuple[str, int, str], ...] = ()
    needs_torch: str = ""

    @property
    def pack(self) -> Path:
        """The packed model."""
        return self.folder / PACK

    def plan(self, options: ModelOptions) -> Plan | None:
        """The plan that was measured with such options on such a processor, if there is one."""
        try:
            return plan_files.read(self._plan_file(options))
        except EngineError:
            return None

    def keep_plan(self, plan: Plan, options: ModelOptions) -> None:
        """Keep `plan` for `plan`; where that is not possible, the next start measures again."""
        with suppress(OSError):
            plan_files.write(plan, self._plan_file(options))

    def _plan_file(self, options: ModelOptions) -> Path:
        measured = f"{cpu(options.cpus)} {options.precision} {options.max_batch}"
        return self.folder / f"plan-{hashlib.sha256(measured.encode()).hexdigest()[:16]}.json"


class Cache:
    """The packed models below `root`, of at most `size` bytes together.

    Raises:
        UnusableCache: the folder cannot be made, or others may write to it.
    """

    def __init__(self, root: Path, size: int) -> None:
        self.folder = root / PACKS
        self._size = size
        if (trouble := private(self.folder)) is not None:
            raise UnusableCache(f"{self.folder}: {trouble}")

    @contextmanager
    def locked(self, key: str, *, shared: bool = False) -> Iterator[Lock]:
        """Wait for the lock of an entry, and hold it; `shared` with others that only read.

        Raises:
            UnusableCache: the folder cannot be written to, or its file system has no locks.
        """
        with self._lock(key, shared=shared) as lock:
            yield lock

    def find(self, key: str) -> Entry | None:
        """The entry, if it is whole and what it was made from has not changed. The lock is held."""
        folder = self.folder / key
        values = _read(folder / ENTRY)
        if values is None or any(_changed(Path(file), digest) for file, digest in values["read"]):
            return None
        with suppress(OSError):
            os.utime(folder / ENTRY)  # the time of the last use, by which old entries go
        warnings = tuple((name, level, message) for name, level, message in values["warnings"])
        return Entry(folder, warnings, values["needs_torch"])

    def part(self, key: str) -> Path:
        """A new folder to build the entry in, once what earlier builds left is removed. The lock is held."""
        self._sweep(key)
        part = self.folder / f".{key}.{uuid4().hex}"
        part.mkdir(0o700)
        return part

    def put(self, part: Path, key: str, values: Mapping[str, Any]) -> Entry:
        """Make `part`, which `part` returned, the entry; `values` are what `find` reads. The lock is held.

        Raises OSError.
        """
        whole = {"warnings": [], "read": [], "needs_torch": "", **values}
        body = json.dumps(whole, sort_keys=True)
        (part / ENTRY).write_text(f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n", "ascii")
        sync(part)
        self.remove(key)
        part.rename(self.folder / key)
        _sync_one(self.folder)
        found = self.find(key)
        if found is None:
            raise OSError(0, "the entry is not what was written")
        return found

    def remove(self, key: str) -> None:
        """Remove the entry, if there is one. The lock is held."""
        away = self.folder / f".{key}.{uuid4().hex}"
        with suppress(FileNotFoundError):
            (self.folder / key).rename(away)
        shutil.rmtree(away, ignore_errors=True)

    def trim(self, keep: str) -> None:
        """Remove the entries that were not used for longest, until all together have at most `size` bytes.

        `keep`, and entries that are in use, stay. What builds left that were killed goes, too.
        """
        with suppress(OSError):
            for leftover in self.folder.glob(".*.*"):
                self._remove_if_free(leftover.name.split(".")[1], entry=False)
            entries = sorted(self._entries(), key=lambda one: one[1])
            total = sum(size for _, _, size in entries)
            for key, _, size in entries:
                if total <= self._size:
                    break
                if key != keep and self._remove_if_free(key, entry=True):
                    total -= size

    def _entries(self) -> Iterator[tuple[str, float, int]]:
        """Key, time of last use and bytes of each entry."""
        for folder in self.folder.iterdir():
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            with suppress(OSError):
                file = folder / ENTRY
                used = file.stat().st_mtime if file.exists() else 0.0
                yield folder.name, used, sum(one.stat().st_size for one in folder.rglob("*"))

    def _remove_if_free(self, key: str, *, entry: bool) -> bool:
        try:
            lock = self._lock(key, wait=False)
        except BlockingIOError:
            return False
        with lock:
            self._sweep(key)
            if entry:
                self.remove(key)
            if not (self.folder / key).exists():
                self._lock_file(key).unlink(missing_ok=True)
        return True

    def _sweep(self, key: str) -> None:
        for leftover in self.folder.glob(f".{key}.*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _lock_file(self, key: str) -> Path:
        return self.folder / f"{key}.lock"

    def _lock(self, key: str, *, shared: bool = False, wait: bool = True) -> Lock:
        """The lock of the entry; see `Lock`. Others remove its file, but only while they hold it."""
        file = self._lock_file(key)
        while True:
            try:
                lock = Lock(file, shared=shared, wait=wait)
            except BlockingIOError:
                raise
            except OSError as error:
                raise UnusableCache(f"{file}: cannot be locked: {error.strerror}") from error
            if lock.is_in_place():
                return lock
            lock.release()


def sync(folder: Path) -> None:
    """Bring all files of `folder` to the disk; raises OSError."""
    for path, _, names in os.walk(folder):
        for name in names:
            _sync_one(Path(path) / name)
        _sync_one(Path(path))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(file: Path) -> dict[str, Any] | None:
    """The values in an entry.json; None where there are none, or they are damaged."""
    try:
        body, digest, rest = regular_files.read(file, _BYTES).decode("ascii").split("\n")
        if rest or hashlib.sha256(body.encode()).hexdigest() != digest:
            return None
        values: dict[str, Any] = json.loads(body)
    except (OSError, ValueError):
        return None
    return values


def _changed(file: Path, digest: str) -> bool:
    try:
        return regular_files.sha256(file) != digest
    except OSError:
        return True
