"""The Indexed Job of k8s/examples/score.yaml: one row per image, however its pods end."""

import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import yaml
from kubernetes import client

from ..packs import tiny_pack
from ..scoring.material import photos
from ..shared import until
from ..sources.servers import s3
from .machine import HOST

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
SHARDS, PART = 8, 10
IMAGES, TIMES = 24_000, 20
TRIES = 3
"""`backoffLimitPerIndex` of the example."""
FATES = ("killed", "deleted", "evicted", "lost")
"""`kill -9`; as by `kubectl delete pod`; as by a drain; as on a node that is gone."""


def job(image: str) -> dict[str, Any]:
    """The example with small pods, on the cluster of the tests."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "k8s/examples/score.yaml").read_text())
    (container,) = found["spec"]["template"]["spec"]["containers"]
    container["image"] = image
    container["args"] += ["--part-rows", str(PART), "--tune-budget", "0"]
    resources = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "100m", "memory": "1Gi"}}
    container["resources"] = resources  # slow enough for every end to come before that of the index
    return found


def with_claims(wanted: dict[str, Any], claims: dict[str, str]) -> None:
    """Use these claims."""
    for volume in wanted["spec"]["template"]["spec"]["volumes"]:
        if volume["name"] in claims:
            volume["persistentVolumeClaim"]["claimName"] = claims[volume["name"]]


def with_bucket(wanted: dict[str, Any], endpoint: str) -> None:
    """Read the photos from a bucket, and write the results there."""
    pod = wanted["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    places = {"/photos": "s3://data/photos", "/scores": "s3://data/scores"}
    container["args"] = [places.get(word, word) for word in container["args"]]
    container["env"] += [
        {"name": "AWS_ENDPOINT_URL", "value": endpoint},
        {"name": "AWS_ACCESS_KEY_ID", "value": "key"},
        {"name": "AWS_SECRET_ACCESS_KEY", "value": "secretkey"},
    ]
    for list_ in (pod["volumes"], container["volumeMounts"]):
        list_[:] = [one for one in list_ if one["name"] not in ("photos", "scores")]


class Scoring:
    """The Job while it runs. scores: the folder of its results."""

    def __init__(
        self,
        namespace: str,
        scores: Path,
        api: client.ApiClient,
        container_process: Callable[[str, str], int],
    ) -> None:
        self.namespace = namespace
        self.scores = scores
        self.core, self.batch = client.CoreV1Api(api), client.BatchV1Api(api)
        self._process = container_process

    @property
    def status(self) -> Any:
        return self.batch.read_namespaced_job("score", self.namespace).status

    def parts(self, index: int) -> int:
        """How many parts of an index there are."""
        return len(list(self.scores.glob(f"part-{index:05}-*.parquet")))

    def pods(self) -> dict[int, str]:
        """The names of the pods that run, by index."""
        found = self.core.list_namespaced_pod(
            self.namespace, label_selector="job-name=score", field_selector="status.phase=Running"
        )
        label = "batch.kubernetes.io/job-completion-index"
        return {
            int(pod.metadata.labels[label]): str(pod.metadata.name)
            for pod in found.items
            if pod.metadata.deletion_timestamp is None
        }

    def end(self, pod: str, fate: str) -> None:
        """End a pod in one of the FATES."""
        if fate == "killed":
            os.kill(self._process(self.namespace, pod), signal.SIGKILL)
        elif fate == "deleted":
            self.core.delete_namespaced_pod(pod, self.namespace)
        elif fate == "evicted":
            eviction = {"metadata": {"name": pod, "namespace": self.namespace}}
            self.core.create_namespaced_pod_eviction(pod, self.namespace, eviction)
        else:  # what the garbage collector of pods does once a node has the taint `out-of-service`
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}
            status = {"status": {"phase": "Failed", "conditions": [condition]}}
            self.core.patch_namespaced_pod_status(pod, self.namespace, status)
            self.core.delete_namespaced_pod(pod, self.namespace, grace_period_seconds=0)

    def until_complete(self) -> None:
        """Wait until all indexes have succeeded."""
        until(
            lambda: self.status.succeeded == SHARDS or self.status.failed_indexes,
            seconds=900,
            what="the Job's end",
        )
        assert not self.status.failed_indexes

    def has_one_row_per_image(self, images: int) -> None:
        keys = ds.dataset(self.scores, format="parquet").to_table()["key"].to_pylist()
        assert len(keys) == len(set(keys)) == images


@pytest.fixture
def seed() -> int:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random.seed(seed)
    return seed


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a packed model."""
    folder = tmp_path_factory.mktemp("score")
    tiny_pack(folder / "models" / "model")
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    return folder


@pytest.fixture
def start(
    image: Callable[[str], str],
    claim: Callable[..., str],
    namespace: str,
    kubectl: Run,
    api: client.ApiClient,
    container_process: Callable[[str, str], int],
) -> Callable[..., Scoring]:
    """Start the Job: with claims for these folders, and with a bucket for what is not among them."""

    def start(results: Path, endpoint: str = "", **folders: Path) -> Scoring:
        wanted = job(image("batch"))
        if endpoint:
            with_bucket(wanted, endpoint)
        with_claims(
            wanted, {name: claim(folder, writable=name == "scores") for name, folder in folders.items()}
        )
        kubectl("apply", "-n", namespace, "-f", "-", input=yaml.safe_dump(wanted))
        return Scoring(namespace, results, api, container_process)

    return start


def end_early(scoring: Scoring, fates: Sequence[str]) -> None:
    """End a pod for each fate, after it has written something, and before its index is complete."""
    before = dict.fromkeys(range(SHARDS), 0)
    ended: Counter[int] = Counter()

    def progressing() -> dict[int, str]:
        """The pods that have written, and may end: by index."""
        return {
            index: pod
            for index, pod in scoring.pods().items()
            if ended[index] < TRIES and before[index] < scoring.parts(index) < IMAGES // SHARDS // PART
        }

    for fate in fates:
        found = until(progressing, seconds=300, what="a pod that has written a part")
        index, pod = random.choice(list(found.items()))
        scoring.end(pod, fate)
        before[index] = scoring.parts(index)
        ended[index] += 1
        print(f"{fate}: index {index}, after {before[index]} parts")


def test_an_indexed_job_writes_one_row_per_image_though_two_of_its_pods_die(
    start: Callable[..., Scoring], folder: Path, seed: int
) -> None:
    folders = {name: folder / name for name in ("models", "photos", "scores")}
    photos(folders["photos"], IMAGES)
    folders["scores"].mkdir()
    scoring = start(folders["scores"], **folders)
    end_early(scoring, ("killed", "deleted"))
    scoring.until_complete()
    assert scoring.status.failed == 2
    scoring.has_one_row_per_image(IMAGES)


@pytest.mark.parametrize("kind", ["claim", "s3"])
def test_an_indexed_job_writes_one_row_per_image_though_twenty_of_its_pods_end_early(
    kind: str, start: Callable[..., Scoring], folder: Path, seed: int
) -> None:
    bucket = folder / "s3" / "data"
    photos(bucket / "photos", IMAGES)
    (bucket / "scores").mkdir()
    own = {"photos": bucket / "photos", "scores": bucket / "scores"} if kind == "claim" else {}
    with s3(bucket.parent, folder / "s3.log", "key", "secretkey", host=HOST) as endpoint:
        scoring = start(bucket / "scores", endpoint if kind == "s3" else "", models=folder / "models", **own)
        end_early(scoring, random.sample(FATES * TIMES, TIMES))
        scoring.until_complete()
    print(f"failed: {scoring.status.failed}")
    scoring.has_one_row_per_image(IMAGES)
