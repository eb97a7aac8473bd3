"""CPUs: how many of the machine's this process may use, by its cgroups and its affinity.

The limit is that of a container, or of a systemd unit. It may change while the process runs, for example when
Kubernetes resizes a pod in place.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
"""The cgroups that this process is in, a line each: cgroups(7)."""


def cpu_quota() -> int:
    """Return the number of CPUs that this process may use now.

    That is the lowest quota of its cgroups (v2 or v1) and of those above them, rounded up, or the size of the
    affinity mask if that is less.
    """
    affinity = len(os.sched_getaffinity(0))
    quotas = (-(-quota // period) for quota, period in _quotas() if quota > 0 and period > 0)
    return min((affinity, *quotas))


def _quotas() -> Iterator[tuple[int, int]]:
    """Yield quota and period of each cgroup that may limit this process, in microseconds.

    A quota of 0 or less is no limit.
    """
    v2, v1 = _own_cgroups()
    for folder in _upwards(CGROUPS, v2):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except OSError:  # the root has no limit, nor has a cgroup without the controller
            continue
        yield (0 if quota == "max" else int(quota)), int(period)
    for folder in _upwards(CGROUPS / "cpu", v1):
        try:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            continue
        yield int(quota), int(period)


def _own_cgroups() -> tuple[str, str]:
    """Return the paths of this process in the hierarchy of v2, and in that of v1's CPU controller."""
    v2 = v1 = "/"
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return v2, v1
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            v2 = path
        elif "cpu" in controllers.split(","):
            v1 = path
    return v2, v1


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """Yield the folder of the cgroup `path` below `root`, and those above it, `root` too.

    In a container the path may be the host's, of which the container sees its own cgroup alone, as `root`.
    """
    inside = PurePosixPath(path.lstrip("/"))
    if ".." not in inside.parts:  # else it is outside of what this process sees
        yield from (root / folder for folder in (inside, *inside.parents) if folder.name)
    yield root
