"""Under attack, a pod with the chart's default resources is not killed, and answers others."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from kubernetes import client

from .attacks import ATTACKS, Pod, probed
from .load import IMAGE
from .release import Release

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("reachable")]

GRPC = {"settings": {"grpcPort": 8001}}
ESPRESSO = 967
AT_MOST = 1.0
"""Seconds that others may wait for /livez on a node whose cores the attacker uses too."""


@pytest.fixture(params=["slim", "full"])
def pod(request: pytest.FixtureRequest, image: Callable[[str], str], release: Release) -> client.V1Pod:
    """The pod of a release that serves the demo. But for its image and gRPC, all is as the chart has it."""
    image(request.param)
    release.upgrade(GRPC, {"image": {"variant": request.param}})
    (found,) = release.until_ready(1)
    return found


def memory(process: int) -> tuple[int, int]:
    """Of a process's cgroup: how many processes were killed in it for want of memory; its peak in bytes."""
    lines = Path(f"/proc/{process}/cgroup").read_text().splitlines()
    groups = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    if "memory" in groups:  # version 1 of cgroups
        folder = Path("/sys/fs/cgroup/memory") / groups["memory"].lstrip("/")
        events, peak = folder / "memory.oom_control", folder / "memory.max_usage_in_bytes"
    else:
        folder = Path("/sys/fs/cgroup") / groups[""].lstrip("/")
        events, peak = folder / "memory.events", folder / "memory.peak"
    killed = re.search(r"^oom_kill (\d+)", events.read_text(), re.MULTILINE)
    assert killed
    return int(killed[1]), int(peak.read_text())


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_neither_kills_a_pod_nor_keeps_others_from_their_answers(
    pod: client.V1Pod, release: Release, container_process: Callable[[str, str], int], name: str
) -> None:
    process = container_process(release.namespace, pod.metadata.name)
    (container,) = pod.spec.containers
    assert container.resources.limits["memory"] == "2Gi"
    patience = container.liveness_probe.timeout_seconds
    address = f"http://{pod.status.pod_ip}:8000"
    target = Pod(pod.status.pod_ip, 8000, 8001, httpx.get(f"{address}/info").json()["name"])

    seen = asyncio.run(probed(ATTACKS[name], target, patience))

    waits = [probe.seconds for probe in seen]
    p50, p99, most = np.quantile(waits, [0.5, 0.99, 1]) * 1000
    print(f"{len(seen)} times /livez: {p50:.0f} ms, p99 {p99:.0f} ms, most {most:.0f} ms")
    (after,) = release.pods
    status = after.status.container_statuses[0]
    assert after.metadata.uid == pod.metadata.uid
    assert status.restart_count == 0, status.last_state.terminated
    assert Path(f"/proc/{process}").exists(), "the container's process was ended"
    kills, peak = memory(process)
    print(f"memory at most {peak / 2**20:.0f} MiB")
    assert kills == 0
    assert {probe.status for probe in seen} == {200}, f"no answer within {patience} s"
    assert max(waits) < AT_MOST
    answer = httpx.post(f"{address}/predict", files={"image": IMAGE.read_bytes()}, timeout=30)
    assert answer.json()["class_index"] == ESPRESSO
