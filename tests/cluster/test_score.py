"""The Indexed Job of k8s/examples/score.yaml: one row per image, though some of its pods die."""

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import yaml
from kubernetes import client

from ..packs import tiny_pack
from ..scoring.material import photos
from ..shared import until

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
IMAGES, SHARDS, PART = 4000, 8, 10


def job(name: str, claims: dict[str, str]) -> dict[str, Any]:
    """The example with these claims, and with small pods on the cluster of the tests."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "k8s/examples/score.yaml").read_text())
    pod = found["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container["image"] = name
    container["args"] = [word.replace("/models/model.pth", "/models/cats") for word in container["args"]]
    container["args"] += ["--part-rows", str(PART), "--tune-budget", "0"]
    container["resources"] = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}
    for volume in pod["volumes"]:
        if volume["name"] in claims:
            volume["persistentVolumeClaim"]["claimName"] = claims[volume["name"]]
    return found


def test_an_indexed_job_writes_one_row_per_image_though_two_of_its_pods_die(
    image: Callable[[str], str],
    claim: Callable[..., str],
    namespace: str,
    kubectl: Run,
    api: client.ApiClient,
    container_process: Callable[[str, str], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random.seed(seed)
    folder = tmp_path_factory.mktemp("score")
    tiny_pack(folder / "models" / "cats")
    photos(folder / "photos", IMAGES)
    (folder / "scores").mkdir()
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    claims = {
        name: claim(folder / name, writable=name == "scores") for name in ("models", "photos", "scores")
    }
    wanted = job(image("full"), claims)
    kubectl("apply", "-n", namespace, "-f", "-", input=yaml.safe_dump(wanted))

    def parts(index: int) -> list[Path]:
        return list((folder / "scores").glob(f"part-{index:05}-*.parquet"))

    killed, deleted = random.sample(range(SHARDS), 2)
    for index in (killed, deleted):
        until(lambda index=index: parts(index), seconds=600, what=f"a part of index {index}")  # type: ignore[misc]
        selector = f"batch.kubernetes.io/job-completion-index={index}"
        (pod, *_) = client.CoreV1Api(api).list_namespaced_pod(namespace, label_selector=selector).items
        if index == killed:
            os.kill(container_process(namespace, pod.metadata.name), signal.SIGKILL)
        else:
            kubectl("delete", "pod", "-n", namespace, pod.metadata.name, "--wait=false")

    def status() -> Any:
        return client.BatchV1Api(api).read_namespaced_job("score", namespace).status

    until(lambda: status().succeeded == SHARDS or status().failed_indexes, seconds=900, what="the Job's end")
    assert not status().failed_indexes
    keys = ds.dataset(folder / "scores", format="parquet").to_table()["key"].to_pylist()
    assert len(keys) == len(set(keys)) == IMAGES
