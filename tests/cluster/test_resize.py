"""A pod is resized in place: it goes on, and the service follows its new CPU limit."""

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from ..shared import until
from .load import Load
from .release import SLIM, SMALL, Release

pytestmark = pytest.mark.usefixtures("reachable")


def test_a_pod_that_is_resized_loses_nothing_and_follows_its_limit(
    image: Callable[[str], str],
    models: Path,
    claim: Callable[[Path], str],
    release: Release,
    kubectl: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    image("slim")
    weights = {"weights": {"source": "pvc", "file": "one", "pvc": {"existingClaim": claim(models)}}}
    release.upgrade(SMALL, SLIM, weights, {"resources": {"limits": {"cpu": "2"}}})
    (before,) = release.until_ready(1)
    address = release.address

    def uses() -> tuple[int, int]:
        """CPUs of the service, and threads of its engine."""
        info = httpx.get(f"{address}/info", timeout=30).json()
        return info["cpus"], info["plan"]["threads"]

    def uses_all(cpus: int) -> bool:
        return uses() == (cpus, cpus)

    assert uses() == (2, 2)
    with Load(address) as sent:
        sent.until_more(300)
        for cpus in (1, 2):
            patch = {
                "spec": {"containers": [{"name": "pthserve", "resources": {"limits": {"cpu": str(cpus)}}}]}
            }
            kubectl(
                *("patch", "pod", "-n", release.namespace, before.metadata.name),
                *("--subresource", "resize", "--patch", json.dumps(patch)),
            )
            until(partial(uses_all, cpus), seconds=60, what=f"{cpus} CPUs")
            sent.until_more(300)
    print(sent)

    assert not sent.faults
    (after,) = release.pods
    assert after.metadata.uid == before.metadata.uid
    assert after.status.container_statuses[0].restart_count == 0
