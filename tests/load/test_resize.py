"""The CPU limit of a running service changes: a real cgroup's, as when Kubernetes resizes a pod in place."""

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from pthserve.loading.pack import pack
from pthserve.settings import Settings

from ..cgroups import Cgroup, cgroup
from ..running import Running, running
from .asking import Clients, post

pytestmark = [pytest.mark.alone, pytest.mark.slow]

CLIENTS = 8
SECONDS = 4.0
"""Of load at each limit."""


@dataclass
class Stage:
    """What the service did at one limit of so many `cpus`.

    threads: of the process. rate: answers a second. p99: of their latency, in seconds.
    """

    cpus: int
    threads: int
    rate: float
    p99: float


async def stage(service: Running, group: Cgroup, clients: Clients, cpus: int) -> Stage:
    """Limit the service to so many CPUs, and measure once it has followed."""
    group.limit(cpus)
    async with httpx.AsyncClient(base_url=service.address, timeout=30) as client:
        info = {}

        async def followed() -> bool:
            info.update((await client.get("/info")).json())
            return (info["cpus"], info["plan"]["threads"]) == (cpus, cpus)

        end = time.monotonic() + 30
        while not await followed():
            assert time.monotonic() < end, service.log.read_text()
    began, before = time.perf_counter(), len(clients.answers)
    await asyncio.sleep(SECONDS)
    found = [answer.seconds for answer in clients.answers[before:]]
    rate = len(found) / (time.perf_counter() - began)
    threads = len(list(Path(f"/proc/{service.process.pid}/task").iterdir()))
    return Stage(cpus, threads, rate, float(np.quantile(found, 0.99)))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU: no limit can be above 1")
def test_two_cpus_one_and_two_again_under_load_lose_nothing(imagenet: Path, tmp_path: Path) -> None:
    """The engine follows the limit; the throughput at each is printed."""
    pack(str(imagenet), tmp_path / "pack", Settings(tune_budget=0, allow_code="efficientnet_lite_pytorch"))
    image = (imagenet / "golden" / "coffee.jpg").read_bytes()

    async def measured() -> list[Stage]:
        async with clients.busy(CLIENTS):
            return [await stage(service, group, clients, cpus) for cpus in (2, 1, 2)]

    with cgroup() as group, running(tmp_path / "pack", tmp_path / "log") as service:
        group.add(service.process.pid)
        clients = Clients(service.address, [post(image)])
        print(*asyncio.run(measured()), sep="\n")
        assert {answer.status for answer in clients.answers} == {200}
        log = service.log.read_text()
        assert "the engine was rebuilt: the number of threads was 2 and is 1 now" in log
        assert "the engine was rebuilt: the number of threads was 1 and is 2 now" in log
