"""How many CPUs the process may use, by cgroups as the kernel and containers show them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pthserve import cpus
from pthserve.cpus import cpu_quota

from .cgroups import cgroup

LIMITED = "150000 100000\n"
"""cpu.max of one and a half CPUs."""


def v1(quota: str) -> dict[str, str]:
    return {"cpu/cpu.cfs_quota_us": f"{quota}\n", "cpu/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("own", "files", "granted"),
    [
        ("0::/\n", {"cpu.max": LIMITED}, 2),
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": LIMITED}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": LIMITED, "a/cpu.max": "800000 100000\n"}, 2),
        ("0::/a\n", {"a/cpu.max": "300000 100000\n", "b/cpu.max": LIMITED}, 3),
        ("0::/kubepods/of-the-host\n", {"cpu.max": LIMITED}, 2),
        ("0::/../elsewhere\n", {"cpu.max": LIMITED}, 2),
        ("4:cpu,cpuacct:/\n0::/\n", v1("400000"), 4),
        ("4:cpu,cpuacct:/\n0::/\n", v1("-1"), 64),
        ("4:cpu:/a\n3:memory:/b\n", {f"cpu/a/{name[4:]}": text for name, text in v1("400000").items()}, 4),
        ("1:name=systemd:/\n", {}, 64),
        (None, {}, 64),
        (None, {"cpu.max": LIMITED}, 2),
    ],
    ids=[
        *(
            "v2",
            "v2-under-one",
            "v2-unlimited",
            "more-than-there-are",
            "v2-of-a-parent",
            "v2-less-than-a-parent",
        ),
        *("v2-own-and-no-other", "v2-path-of-the-host", "v2-outside", "v1", "v1-unlimited", "v1-own"),
        *("no-cgroup", "no-proc", "v2-without-proc"),
    ],
)
def test_the_quota_is_the_lowest_of_the_own_cgroups(
    own: str | None, files: dict[str, str], granted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    if own is not None:
        (tmp_path / "membership").write_text(own)
    monkeypatch.setattr(cpus, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(cpus, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cpu_quota() == granted


CHILD = "from pthserve.cpus import cpu_quota\nwhile input() or True: print(cpu_quota(), flush=True)"


@pytest.mark.parametrize("limit", [0.5, 1.0])
def test_the_kernel_s_own_limit_is_seen_when_it_is_set_and_when_it_goes(limit: float) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with cgroup() as group, subprocess.Popen([sys.executable, "-c", CHILD], **pipes) as child:  # type: ignore[call-overload]
        try:

            def seen() -> int:
                child.stdin.write("\n")
                return int(child.stdout.readline())

            before = seen()
            group.add(child.pid)
            group.limit(limit)
            assert seen() == 1
            group.limit(None)
            assert seen() == before
        finally:
            child.kill()
            child.wait()
