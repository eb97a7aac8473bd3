"""Weights from everywhere the chart takes them from, and what becomes of wrong ones.

They are `.pth` files, and so take the image with PyTorch, which takes minutes to hand to the node.
"""

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from kubernetes import client

from ..shared import until
from . import tiny
from .load import IMAGE
from .release import SLIM, SMALL, Release

pytestmark = pytest.mark.long

Run = Callable[..., subprocess.CompletedProcess[str]]
PortForward = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def ask(release: Release, port_forward: PortForward) -> Callable[[], dict[str, Any]]:
    """ask(): what the release answers to IMAGE."""

    def ask() -> dict[str, Any]:
        with port_forward(release.namespace, f"service/{release.fullname}", 80) as url:
            reply = httpx.post(f"{url}/predict", files={"image": IMAGE.read_bytes()}, timeout=30)
        reply.raise_for_status()
        return dict(reply.json())

    return ask


def digest(weights: Path) -> str:
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def assert_right(answer: dict[str, Any], weights: Path) -> None:
    """It is what torchvision says, and by these weights."""
    assert answer["model"]["digest"] == digest(weights)
    np.testing.assert_allclose(answer["probabilities"], tiny.probabilities(weights, IMAGE), atol=2e-3)


def test_a_claim(
    image: Callable[[str], str],
    models: Path,
    claim: Callable[..., str],
    release: Release,
    ask: Callable[[], dict[str, Any]],
) -> None:
    image("full")
    weights = {"source": "pvc", "file": "one.pth", "pvc": {"existingClaim": claim(models)}}
    release.upgrade(SMALL, {"weights": weights})

    assert_right(ask(), models / "one.pth")


def test_a_config_map(
    image: Callable[[str], str],
    models: Path,
    kubectl: Run,
    release: Release,
    ask: Callable[[], dict[str, Any]],
) -> None:
    image("full")
    file = models / "two.pth"
    kubectl("create", "configmap", "tiny", "-n", release.namespace, f"--from-file={file}")
    weights = {"source": "configMap", "file": file.name, "configMap": {"name": "tiny"}}
    release.upgrade(SMALL, {"weights": weights | {"sha256": digest(file)}})

    assert_right(ask(), file)


def test_weights_of_another_digest_than_was_pinned_are_not_served(
    image: Callable[[str], str], models: Path, kubectl: Run, release: Release
) -> None:
    image("full")
    file = models / "two.pth"
    kubectl("create", "configmap", "tiny", "-n", release.namespace, f"--from-file={file}")
    weights = {"source": "configMap", "file": file.name, "configMap": {"name": "tiny"}}
    release.upgrade(SMALL, {"weights": weights | {"sha256": digest(models / "one.pth")}}, wait=False)

    message = until(release.complaints, seconds=120, what="a pod's complaint")
    print(message)
    assert digest(file) in message
    assert digest(models / "one.pth") in message
    assert not release.endpoints()


@pytest.fixture
def shelf(
    models: Path, claim: Callable[..., str], busybox: str, namespace: str, kubectl: Run
) -> Iterator[str]:
    """The address below which `models` is served in the cluster."""
    restricted = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "shelf",
        "image": busybox,
        "args": ["httpd", "-f", "-p", "8080", "-h", "/models"],
        "securityContext": restricted,
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": claim(models), "readOnly": True}}
    spec = {
        "containers": [container],
        "volumes": [volume],
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "shelf", "labels": {"app": "shelf"}},
        "spec": spec,
    }
    kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(pod))
    kubectl("expose", "pod/shelf", "-n", namespace, "--port=80", "--target-port=8080")
    kubectl("wait", "-n", namespace, "pod/shelf", "--for=condition=Ready", "--timeout=60s")
    yield "http://shelf"
    kubectl("delete", "pod", "shelf", "-n", namespace)


def test_a_download_that_is_not_what_was_pinned_is_not_served(
    image: Callable[[str], str],
    models: Path,
    shelf: str,
    release: Release,
    ask: Callable[[], dict[str, Any]],
) -> None:
    image("full")
    wanted, other = models / "one.pth", models / "two.pth"
    download = {"weights": {"source": "download", "download": {"url": f"{shelf}/{wanted.name}"}}}
    egress: dict[str, Any] = {"networkPolicy": {"egress": [{}]}}
    release.upgrade(SMALL, download, egress, {"weights": {"sha256": digest(other)}}, wait=False)

    message = until(release.complaints, seconds=120, what="a pod's complaint")
    print(message)
    assert f"{shelf}/{wanted.name} is not the expected file" in message
    assert f"its SHA-256 is {digest(wanted)}, not {digest(other)}" in message
    assert not release.endpoints()
    assert not release.ready

    release.upgrade(SMALL, download, egress, {"weights": {"sha256": digest(wanted)}})
    assert_right(ask(), wanted)


def test_weights_are_packed_once_for_all_pods(
    image: Callable[[str], str],
    models: Path,
    claim: Callable[..., str],
    tmp_path: Path,
    release: Release,
    kubectl: Run,
    ask: Callable[[], dict[str, Any]],
) -> None:
    image("slim")
    image("full")
    weights = {"source": "pvc", "file": "one.pth", "pvc": {"existingClaim": claim(models)}}
    pack = {"enabled": True, "existingClaim": claim(tmp_path, writable=True), "resources": SMALL["resources"]}
    release.upgrade(SMALL, SLIM, {"weights": weights, "pack": pack, "replicas": 2})
    release.until_ready(2)
    assert_right(ask(), models / "one.pth")
    packs = [path for path in tmp_path.iterdir() if path.is_dir()]

    release.upgrade(SMALL, SLIM, {"weights": weights, "pack": pack, "replicas": 3})
    pods = release.until_ready(3)

    said = [kubectl("logs", "-n", release.namespace, pod.metadata.name, "-c", "pack").stdout for pod in pods]
    seconds = {pod.metadata.name: ready_after(pod) for pod in pods}
    print(f"{packs[0].name}; from the start of the serving container to ready: {seconds} s")
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == packs
    assert len(packs) == 1
    assert sum(bool(re.search("MiB", text)) for text in said) == 1  # the others found it done
    assert {pod.spec.containers[0].image.rpartition("-")[2] for pod in pods} == {"slim"}


def ready_after(pod: client.V1Pod) -> float:
    """Seconds, whole ones, from the start of the pod's container until it was ready."""
    (condition,) = (c for c in pod.status.conditions if c.type == "Ready")
    began = pod.status.container_statuses[0].state.running.started_at
    return float((condition.last_transition_time - began).total_seconds())
