"""A cgroup of this machine with a CPU limit that a test sets, as Kubernetes does for a container."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .shared import until

V1, V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
PERIOD = 100_000
"""Microseconds; Kubernetes' own."""


@dataclass(frozen=True)
class Cgroup:
    folder: Path

    def add(self, process: int) -> None:
        """Move a process here, with all its threads."""
        (self.folder / "cgroup.procs").write_text(str(process))

    def limit(self, cpus: float | None) -> None:
        """Let all processes here use so many CPUs together; None is no limit."""
        quota = None if cpus is None else int(cpus * PERIOD)
        if self.folder.is_relative_to(V1):
            (self.folder / "cpu.cfs_period_us").write_text(str(PERIOD))
            (self.folder / "cpu.cfs_quota_us").write_text(str(quota or -1))
        else:
            (self.folder / "cpu.max").write_text(f"{quota or 'max'} {PERIOD}")


@contextmanager
def cgroup() -> Iterator[Cgroup]:
    """A new cgroup without a limit; its processes have ended, or are the test's to end, before it goes."""
    root = V1 if V1.is_dir() else V2
    made = Cgroup(root / f"pthserve-test-{uuid.uuid4().hex[:8]}")
    try:
        made.folder.mkdir()
        made.limit(None)
    except OSError as error:
        if made.folder.is_dir():
            made.folder.rmdir()
        pytest.skip(f"this machine lets tests make no cgroup with a CPU limit: {error}")
    try:
        yield made
    finally:
        # The kernel takes a moment to let go of a process that has ended.
        until(lambda: not (made.folder / "cgroup.procs").read_text(), "an empty cgroup")
        made.folder.rmdir()
