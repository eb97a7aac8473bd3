"""A bad model never reaches the users: upgrades through a real gateway, by a real rollout controller.

What is judged is judged by the service's own metrics in a real Prometheus, under constant load over HTTP and
gRPC.
"""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from kubernetes import client

from pthserve.loading.pack import pack
from pthserve.settings import Settings

from ..shared import until
from . import variants
from .conftest import LOCAL, Cluster, Run
from .machine import run
from .progressive import QUICK, Rollout, Traffic, routed, serving, spoiling
from .release import Release, Values, merged

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("reachable")]


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, api: client.ApiClient) -> str:
    """The gateway's address, once there are a rollout controller and a Prometheus, too."""
    if not cluster.local:
        pytest.skip("what a cluster elsewhere has is not ours to change")
    done = subprocess.run([LOCAL, "rollouts"], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return str(client.CoreV1Api(api).read_namespaced_service("traefik", "gateways").spec.cluster_ip)


@dataclass(frozen=True)
class Models:
    """Packed models in a folder, and photos that clients send."""

    folder: Path
    photos: list[Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """`base`, honest successors of it, and each kind of sabotage, packed, each in a folder of its name."""
    made, packed = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("packed")
    base = variants.train(seed=0)
    every = {"base": base, "tuned": variants.train(1, epochs=2, start=base), "retrained": variants.train(2)}
    every |= {name: change(base) for name, change in variants.SABOTAGE.items()}
    every |= {
        "half-trained": variants.train(3, epochs=0.2),
        "other-data": variants.train(4, 4, shuffled=True),
    }
    folders = {name: variants.write(made / name, weights) for name, weights in every.items()}
    for name, preprocessing in variants.CARDS.items():
        folders[name] = variants.write(made / name, base, **preprocessing)
    for name, folder in folders.items():
        pack(str(folder), packed / name, Settings(tune_budget=0))
    run("chmod", "-R", "a+rX", packed)
    return Models(packed, variants.photos(tmp_path_factory.mktemp("sent") / "photos", 100))


@dataclass(frozen=True)
class Stage:
    """A release whose stable model is `base`, while `traffic` goes through the gateway."""

    rollout: Rollout
    traffic: Traffic
    models: Models
    kubectl: Run

    @property
    def base(self) -> Values:
        return self.values("base")

    def values(self, model: str) -> Values:
        namespace = self.rollout.release.namespace
        return merged(QUICK, routed(namespace), serving(self.models.folder, model))


@pytest.fixture(scope="module")
def rollout(
    gateway: str, image: Callable[[str], str], models: Models, api: client.ApiClient, helm: Run
) -> Iterator[Rollout]:
    """A release that serves `base`, and that Prometheus sees, after some minutes."""
    image("slim")
    core = client.CoreV1Api(api)
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": namespace}})
    rollout = Rollout(Release(namespace, api, helm))
    rollout.release.upgrade(QUICK, routed(namespace), serving(models.folder, "base"), wait=False)
    rollout.until_promoted()
    address = core.read_namespaced_service("prometheus", "monitoring").spec.cluster_ip

    def seen() -> bool:
        query = {"query": f'pthserve_model_info{{namespace="{namespace}"}}'}
        return bool(httpx.get(f"http://{address}:9090/api/v1/query", params=query).json()["data"]["result"])

    until(seen, seconds=300, what="the release in Prometheus")
    yield rollout
    core.delete_namespace(namespace)


@pytest.fixture
def stage(gateway: str, rollout: Rollout, models: Models, kubectl: Run) -> Iterator[Stage]:
    namespace = rollout.release.namespace
    stage = Stage(rollout, Traffic(gateway, namespace, models.photos), models, kubectl)
    with Traffic(gateway, namespace, models.photos, clients=2) as first:
        until(first.flows, seconds=60, what="answers through the gateway")
    with Traffic(gateway, namespace, models.photos) as before:
        rollout.release.upgrade(stage.base, wait=False)
        rollout.until_promoted()
    assert not before.faults
    with stage.traffic as traffic:
        traffic.until_more(50)
        yield stage
    print(traffic)


def spoil(stage: Stage, fault: str) -> Values:
    """Values for the same model in a process with one of FAULTS."""
    text = f"--from-literal=sitecustomize.py={variants.spoilt(fault)}"
    stage.kubectl("create", "configmap", fault, "-n", stage.rollout.release.namespace, text)
    return spoiling(stage.base, fault)


def test_a_model_that_disagrees_is_rolled_back_and_no_request_is_lost(stage: Stage) -> None:
    (base,) = stage.traffic.digests()
    outcome = stage.rollout.upgrade(stage.traffic, stage.values("permuted"))
    print(f"permuted: {outcome}")
    assert not outcome.promoted
    assert "agreement" in outcome.reason
    assert outcome.share < 0.05
    stage.traffic.until_more(50)
    assert not stage.traffic.faults
    ends = [load.answers[-20:] for load in stage.traffic.loads]
    assert {answer.digest for answers in ends for answer in answers} == {base}


@pytest.mark.parametrize(("fault", "gate"), [("slow", "latency"), ("fails", "error-rate")])
def test_a_process_that_is_slow_or_fails_is_rolled_back(stage: Stage, fault: str, gate: str) -> None:
    outcome = stage.rollout.upgrade(stage.traffic, spoil(stage, fault))
    print(f"{fault}: {outcome}")
    assert not outcome.promoted
    assert gate in outcome.reason
    # What fails is answered, and not lost: with the canary's own error, of HTTP or of gRPC.
    assert all(fault == "fails" and fault_.startswith(("500", "INTERNAL")) for fault_ in stage.traffic.faults)


def test_without_prometheus_nothing_is_promoted(stage: Stage) -> None:
    def replicas(number: int) -> None:
        change = f'{{"spec": {{"replicas": {number}}}}}'
        stage.kubectl("patch", "-n", "monitoring", "prometheus/main", "--type=merge", "-p", change)

    replicas(0)
    try:
        outcome = stage.rollout.upgrade(stage.traffic, stage.values("tuned"))
    finally:
        replicas(1)
    print(f"no Prometheus: {outcome}")
    assert not outcome.promoted
    assert outcome.share < 0.1
    assert not stage.traffic.faults


def test_a_rollout_whose_controller_was_killed_is_still_judged(stage: Stage) -> None:
    stage.rollout.release.upgrade(stage.values("permuted"), wait=False)
    until(lambda: stage.rollout.weight > 0, seconds=90, what="traffic for the canary")
    stage.kubectl("delete", "pod", "-n", "argo-rollouts", "--all", "--grace-period=0", "--force")
    until(lambda: stage.rollout.rolled_back or stage.rollout.promoted, seconds=180, what="a decision")
    assert not stage.rollout.promoted
    assert not stage.traffic.faults


def test_honest_successors_are_promoted_and_no_request_is_lost(stage: Stage) -> None:
    known = set(stage.traffic.digests())
    for model in ("tuned", "retrained"):
        outcome = stage.rollout.upgrade(stage.traffic, stage.values(model))
        print(f"{model}: {outcome}", flush=True)
        assert outcome.promoted
        stage.traffic.until_more(50)
        new = stage.traffic.digests().keys() - known
        assert len(new) == 1
        known |= new
    assert not stage.traffic.faults


def test_no_kind_of_sabotage_is_promoted(stage: Stage) -> None:
    """The whole list, one after the other. What it prints is what is known of each kind."""
    promoted = []
    for kind in [*variants.SABOTAGE, "half-trained", "other-data", *variants.CARDS, *variants.FAULTS]:
        values = spoil(stage, kind) if kind in variants.FAULTS else stage.values(kind)
        if kind in variants.CARDS:  # a new card should change less than new weights
            values = merged(values, {"rollout": {"gates": {"agreement": 0.95}}})
        outcome = stage.rollout.upgrade(stage.traffic, values)
        print(f"{kind}: {outcome}", flush=True)
        if outcome.promoted:
            promoted.append(kind)
            break  # what comes next would be compared with it
    assert not promoted
