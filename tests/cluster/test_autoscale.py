"""More pods under load and fewer after it, and nobody notices but for the wait."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kubernetes import client

from ..shared import until
from .load import Load
from .release import SLIM, SMALL, Release

MOST = 3
# As by default, but for the five quiet minutes before a pod goes.
IMPATIENT = {
    "scaleDown": {
        "stabilizationWindowSeconds": 10,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 5}],
    }
}


@pytest.mark.long
@pytest.mark.usefixtures("reachable")
def test_load_brings_pods_and_quiet_takes_them_away(
    image: Callable[[str], str],
    models: Path,
    claim: Callable[[Path], str],
    release: Release,
    api: client.ApiClient,
) -> None:
    image("slim")
    weights = {"weights": {"source": "pvc", "file": "one", "pvc": {"existingClaim": claim(models)}}}
    scaling = {"autoscaling": {"enabled": True, "maxReplicas": MOST, "behavior": IMPATIENT}}
    release.upgrade(SMALL, SLIM, weights, scaling, {"resources": {"requests": {"cpu": "200m"}}})
    release.until_ready(1)
    autoscaler = client.AutoscalingV2Api(api)

    def known() -> bool:
        status = autoscaler.read_namespaced_horizontal_pod_autoscaler(
            release.fullname, release.namespace
        ).status
        return any(c.type == "ScalingActive" and c.status == "True" for c in status.conditions or ())

    until(known, seconds=90, what="the autoscaler's first look at the pod's CPU")
    began = time.monotonic()

    def passed() -> str:
        return f"{time.monotonic() - began:.0f} s"

    with Load(release.address, clients=16, pause=0.02, renewed=20) as sent:
        until(lambda: len(release.ready) > 1, seconds=180, what="a second pod")
        second = passed()
        until(lambda: len(release.ready) == MOST, seconds=180, what=f"{MOST} pods")
        third = passed()
        sent.until_more(1000)
    loaded = passed()

    # One client goes on, and sees the pods go.
    with Load(release.address, clients=1, pause=0.5) as quiet:
        release.until_ready(1, seconds=240)
        quiet.until_more(10)
    print(f"two pods ready after {second}, three after {third}, the last but one gone after {passed()}")
    print(f"under load, for {loaded}: {sent}\nafter it: {quiet}")

    assert not sent.faults
    assert not quiet.faults
