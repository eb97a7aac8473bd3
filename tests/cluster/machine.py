"""The machine that carries the local cluster: its commands, and what of it must be as it was before."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

CACHE = Path(os.environ.get("PTHSERVE_CACHE", "/var/cache/pthserve"))
"""Where the local cluster and its programs are."""
HOST = "198.18.0.1"
"""This machine, as pods of the local cluster reach it."""
CGROUPS = Path("/sys/fs/cgroup")
NETWORKS = Path("/etc/cni")
OF_BUILDAH = frozenset((NETWORKS / "net.d", NETWORKS / "net.d/cni.lock"))
"""What buildah makes there with its first build, and keeps."""


def run(
    *command: str | Path, check: bool = True, timeout: float = 600, **kwargs: object
) -> subprocess.CompletedProcess[str]:
    """What `command` printed, as text; with `check`, it must have ended with 0."""
    done = subprocess.run(command, text=True, capture_output=True, timeout=timeout, check=False, **kwargs)  # type: ignore[call-overload]
    if check and done.returncode:
        name = Path(command[0]).name
        raise AssertionError(f"{name} {command[1:]} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


@dataclass(frozen=True)
class Machine:
    """What of a machine a cluster changes while it is up, and must leave as it was."""

    links: frozenset[str]
    routes: frozenset[str]
    rules: tuple[str, ...]
    mounts: frozenset[str]
    processes: frozenset[int]
    cgroups: frozenset[Path]
    folders: frozenset[Path]
    knobs: tuple[str, ...]

    @classmethod
    def now(cls) -> Self:
        def lines(*command: str) -> list[str]:
            return run(*command).stdout.splitlines()

        folders = (
            *("/opt/cni", "/opt/containerd", "/run/containerd", "/run/netns", "/run/nri"),
            *("/var/lib/cni", "/var/lib/kubelet"),
        )
        knobs = ("kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward", "vm/overcommit_memory")
        return cls(
            links=frozenset(link.split()[0] for link in lines("ip", "-brief", "link")),
            routes=frozenset(lines("ip", "-4", "route", "show", "table", "all")),
            rules=tuple(line for line in lines("iptables-save") if not line.startswith(("#", ":"))),
            # A build that goes on beside the tests mounts its own.
            mounts=frozenset(m for m in lines("findmnt", "-rno", "TARGET") if "/containers/" not in m),
            processes=frozenset(p.pid for p in psutil.process_iter(["cmdline"]) if _of_the_cluster(p)),
            cgroups=frozenset(path for depth in ("*", "*/*") for path in CGROUPS.glob(f"{depth}/kubepods*")),
            folders=frozenset(path for path in map(Path, folders) if path.exists())
            | (frozenset(NETWORKS.rglob("*")) - OF_BUILDAH),
            knobs=tuple(Path("/proc/sys", knob).read_text() for knob in knobs),
        )


def _of_the_cluster(process: psutil.Process) -> bool:
    return any(str(CACHE / "cluster") in word for word in process.info["cmdline"] or ())
