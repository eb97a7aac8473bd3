"""A bad model never reaches the users: upgrades through a real gateway, by a real rollout controller.

What is judged is judged by the service's own metrics in a real Prometheus, under constant load over HTTP and
gRPC. `sweep` does the same with dozens of models.
"""

import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from kubernetes import client

from ..shared import until
from .candidates import BASE, HONEST, KINDS, Candidate
from .conftest import LOCAL, Cluster, Run
from .machine import run
from .progressive import QUICK, RETRY, Place
from .release import Values, merged
from .sweep import Models, Stage, judge, staged

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("reachable")]
PLACE = Place()
AT_ONCE = ("--grace-period=0", "--force")
AWAY = 60.0
"""Seconds without a gateway: several times as long as a step."""
SHARE = 0.05
"""Of the answers, which no bad model gives before it is rolled back."""


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> Place:
    """A gateway, a rollout controller and a Prometheus."""
    if not cluster.local:
        pytest.skip("what a cluster elsewhere has is not ours to change")
    done = subprocess.run([LOCAL, "rollouts"], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return PLACE


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    run("chmod", "a+rx", folder)
    return Models.within(folder)


@pytest.fixture(scope="module")
def release(
    place: Place, image: Callable[[str], str], models: Models, api: client.ApiClient, helm: Run
) -> Iterator[Stage]:
    """A release that serves BASE, and that Prometheus sees, after some minutes."""
    image("slim")
    core = client.CoreV1Api(api)
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": namespace}})
    with staged(models, place, namespace, api, helm, retried=True, values=RETRY) as stage:
        yield stage
        print(stage.traffic)
    core.delete_namespace(namespace)


@pytest.fixture
def stage(release: Stage) -> Stage:
    release.back()
    release.traffic.until_more(50)
    return replace(release, began=time.monotonic())


def chosen(kind: str) -> Candidate:
    """The most usual candidate of a kind."""
    return KINDS[kind][0]


def test_a_model_that_disagrees_is_rolled_back_and_no_request_is_lost(stage: Stage) -> None:
    result = judge(stage, chosen("permuted"))
    print(result)
    assert not result.promoted
    assert "agreement" in result.reason
    assert result.share < SHARE
    assert not result.lost
    ends = [load.answers[-20:] for load in stage.traffic.loads]
    assert {answer.version for answers in ends for answer in answers} == {BASE.name}


def test_wrong_preprocessing_of_the_same_weights_has_a_floor_of_its_own(stage: Stage) -> None:
    """It changes one answer in nine: too close to the floor of new weights to be decided soon."""
    result = judge(stage, chosen("no-crop"))
    print(result)
    assert not result.promoted
    assert "agreement-same-weights" in result.reason
    assert not result.lost


@pytest.mark.parametrize(("fault", "gate"), [("slow", "latency"), ("fails", "error-rate")])
def test_a_process_that_is_slow_or_fails_is_rolled_back(stage: Stage, fault: str, gate: str) -> None:
    result = judge(stage, chosen(fault))
    print(result)
    assert not result.promoted
    assert gate in result.reason
    # What fails is answered, and not lost: with the canary's own error, of HTTP or of gRPC.
    assert all(fault == "fails" and one.startswith(("500", "INTERNAL")) for one in result.lost)


def test_a_process_that_crashes_is_rolled_back_and_its_requests_are_answered_by_others(stage: Stage) -> None:
    """As the gateway sends a request again, over HTTP, and the client, over gRPC."""
    result = judge(stage, chosen("crashes"))
    print(result)
    assert not result.promoted
    assert "restarts" in result.reason
    assert not result.lost


def test_without_prometheus_nothing_is_promoted(stage: Stage, kubectl: Run) -> None:
    def replicas(number: int) -> None:
        change = f'{{"spec": {{"replicas": {number}}}}}'
        kubectl("patch", "-n", "monitoring", "prometheus/main", "--type=merge", "-p", change)

    replicas(0)
    try:
        result = judge(stage, HONEST["tuned"][0])
    finally:
        replicas(1)
    print(result)
    assert not result.promoted
    assert result.share < 0.1
    assert not result.lost


def test_a_rollout_whose_controller_was_killed_is_still_judged(stage: Stage, kubectl: Run) -> None:
    until_judged(stage, lambda: kubectl("delete", "pod", "-n", "argo-rollouts", "--all", *AT_ONCE))
    assert not stage.traffic.faults(stage.began)


def test_a_rollout_whose_gateway_was_killed_is_still_judged_and_traffic_goes_on(
    stage: Stage, place: Place, kubectl: Run
) -> None:
    until_judged(stage, lambda: kubectl("delete", "pod", "-n", place.namespace, "--all", *AT_ONCE))
    until(stage.traffic.flows, seconds=60, what="answers through the gateway")
    assert stage.traffic.versions(stage.began).keys() <= {BASE.name, chosen("permuted").name}


def test_nothing_is_promoted_while_the_gateway_is_away(stage: Stage, place: Place, kubectl: Run) -> None:
    """What an honest candidate has shown before does not speak for a step in which nobody asks it."""
    candidate = HONEST["tuned"][1]
    deployment = ("deployment", place.service, "-n", place.namespace)
    stage.models.pack(candidate)
    slower: Values = {"rollout": {"interval": 6}}  # so that the gateway is gone before the second measurement
    stage.rollout.release.upgrade(merged(stage.values(candidate), slower), wait=False)
    until(lambda: stage.rollout.weight == QUICK["rollout"]["steps"][1], seconds=180, what="the last step")
    kubectl("scale", *deployment, "--replicas=0")
    kubectl("delete", "pod", "-n", place.namespace, "--all", *AT_ONCE)
    try:
        gone = time.monotonic()
        until(lambda: time.monotonic() > gone + AWAY or stage.rollout.promoted, seconds=2 * AWAY)
        assert not stage.rollout.promoted
    finally:
        kubectl("scale", *deployment, "--replicas=1")
    until(stage.traffic.flows, seconds=60, what="answers through the gateway")
    until(lambda: stage.rollout.promoted or stage.rollout.rolled_back, seconds=240, what="a decision")


def until_judged(stage: Stage, kill: Callable[[], object]) -> None:
    """Kill something once a sabotaged model gets traffic: it is rolled back nevertheless."""
    candidate = chosen("permuted")
    stage.models.pack(candidate)
    stage.rollout.release.upgrade(stage.values(candidate), wait=False)
    until(lambda: stage.rollout.weight > 0, seconds=90, what="traffic for the canary")
    kill()
    until(lambda: stage.rollout.rolled_back or stage.rollout.promoted, seconds=180, what="a decision")
    assert not stage.rollout.promoted


def test_honest_successors_are_promoted_and_no_request_is_lost(stage: Stage) -> None:
    before = BASE.name
    for kind in HONEST:
        result = judge(stage, HONEST[kind][0])
        print(result, flush=True)
        assert result.promoted
        assert result.answers.keys() == {before, result.name}
        assert not result.lost
        before = result.name


def test_no_kind_of_sabotage_is_promoted(stage: Stage) -> None:
    """One of each kind, one after the other. What it prints is what is known of each kind."""
    promoted = []
    for kind in KINDS:
        result = judge(stage, chosen(kind))
        print(result, flush=True)
        if result.promoted:
            promoted.append(kind)
            stage.back()
    assert not promoted
