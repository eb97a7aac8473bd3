"""A pod that is started from k8s/kserve as KServe's Standard mode starts it.

KServe's controller makes three things of a runtime and an InferenceService: the runtime's container with its
`{{.Name}}` filled in; the model, mounted read-only as /mnt/models (of a claim, the folder that storageUri
names); and a Service whose port 80 leads to the container's first port. The controller itself is not run.
"""

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from . import tiny
from .load import IMAGE

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
RUNTIME: dict[str, Any] = yaml.safe_load((ROOT / "k8s/kserve/runtime.yaml").read_text())
SERVED: dict[str, Any] = yaml.safe_load((ROOT / "k8s/kserve/inferenceservice.yaml").read_text())


def _filled(value: Any, name: str) -> Any:
    """`value` with KServe's placeholder for the InferenceService's name filled in."""
    if isinstance(value, dict):
        return {key: _filled(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, name) for inner in value]
    return value.replace("{{.Name}}", name) if isinstance(value, str) else value


def standard(runtime: dict[str, Any], served: dict[str, Any], claim: str) -> list[dict[str, Any]]:
    """The Deployment and the Service, with `claim` in place of the one that storageUri names."""
    name = served["metadata"]["name"]
    predictor = served["spec"]["predictor"]
    spec = _filled(runtime["spec"], name)
    (container,) = spec["containers"]
    _, _, folder = predictor["model"]["storageUri"].removeprefix("pvc://").partition("/")
    mount = {"name": "kserve-pvc-source", "mountPath": "/mnt/models", "subPath": folder, "readOnly": True}
    container["volumeMounts"] = [*container["volumeMounts"], mount]
    source = {"name": "kserve-pvc-source", "persistentVolumeClaim": {"claimName": claim}}
    labels = {"app": f"isvc.{name}-predictor"}
    meta = {"name": f"{name}-predictor"}
    pod = {
        "containers": [container],
        "volumes": [*spec["volumes"], source],
        "terminationGracePeriodSeconds": predictor["terminationGracePeriodSeconds"],
        "automountServiceAccountToken": False,
    }
    template = {"metadata": {"labels": labels, "annotations": spec["annotations"]}, "spec": pod}
    port = {"name": "http", "port": 80, "targetPort": container["ports"][0]["containerPort"]}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": labels, "ports": [port]},
        },
    ]


def test_the_model_answers_under_its_name(
    image: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    claim: Callable[..., str],
    namespace: str,
    kubectl: Callable[..., "subprocess.CompletedProcess[str]"],
    port_forward: Callable[..., AbstractContextManager[str]],
) -> None:
    image("full")
    folder = tmp_path_factory.mktemp("kserve")
    (folder / "cats").mkdir(mode=0o755)
    weights = tiny.make(folder / "cats" / "model.pth", 3)
    objects = standard(RUNTIME, SERVED, claim(folder))
    kubectl("apply", "-n", namespace, "-f", "-", input=yaml.safe_dump_all(objects))
    kubectl("rollout", "status", "-n", namespace, "deployment/cats-predictor", "--timeout=5m", timeout=320)

    with port_forward(namespace, "service/cats-predictor", 80) as url:
        assert httpx.get(f"{url}/v2/models/cats/ready", timeout=30).status_code == 200
        answer = httpx.post(f"{url}/predict", files={"image": IMAGE.read_bytes()}, timeout=30).json()
        metrics = httpx.get(f"{url}{RUNTIME['spec']['annotations']['prometheus.kserve.io/path']}", timeout=30)
    np.testing.assert_allclose(answer["probabilities"], tiny.probabilities(weights, IMAGE), atol=2e-3)
    assert answer["model"]["name"] == "cats"
    assert "pthserve_build_info" in metrics.text
