"""What is lost when a pod ends, for good reasons and bad."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kubernetes import client

from ..shared import until
from .load import Answer, Load
from .release import SLIM, SMALL, Release

pytestmark = pytest.mark.usefixtures("reachable")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def served(
    image: Callable[[str], str], models: Path, claim: Callable[[Path], str], release: Release
) -> Release:
    """Two pods that serve a small model."""
    image("slim")
    weights = {"weights": {"source": "pvc", "file": "one", "pvc": {"existingClaim": claim(models)}}}
    # A drain empties a node of the pods that carry a label: those of this namespace, and nobody else's.
    labels = {"podLabels": {"drained-by": release.namespace}}
    release.upgrade(SMALL, SLIM, weights, labels, {"replicas": 2})
    release.until_ready(2)
    return release


@contextmanager
def under_load(release: Release, after: int = 500) -> Iterator[Load]:
    """Load from before what is done inside until it has been answered `after` times more; it is printed."""
    with Load(release.address) as sent:
        sent.until_more(300)
        yield sent
        sent.until_more(after)
    print(sent)


def lost(sent: Load) -> list[Answer]:
    return [answer for answer in sent.answers if answer.fault]


def restarts(release: Release, pod: client.V1Pod) -> int:
    """How often the pod's container was restarted."""
    found = client.CoreV1Api(release.api).read_namespaced_pod(pod.metadata.name, release.namespace)
    return int(found.status.container_statuses[0].restart_count)


def test_nothing_is_lost_when_a_pod_is_deleted(served: Release, kubectl: Run) -> None:
    victim = served.pods[0].metadata

    with under_load(served) as sent:
        kubectl("delete", "pod", "-n", served.namespace, victim.name)
        after = served.until_ready(2)

    assert victim.uid not in {pod.metadata.uid for pod in after}
    assert not sent.faults


def test_nothing_is_lost_when_the_process_is_told_to_end(
    served: Release, container_process: Callable[[str, str], int]
) -> None:
    victim = served.pods[0]

    with under_load(served) as sent:
        os.kill(container_process(served.namespace, victim.metadata.name), signal.SIGTERM)
        until(lambda: restarts(served, victim), seconds=30, what="a new start")
        served.until_ready(2)

    assert not sent.faults


def test_a_drained_node_loses_nothing(served: Release, kubectl: Run) -> None:
    before = {pod.metadata.uid for pod in served.pods}
    node = served.pods[0].spec.node_name
    ours = f"--pod-selector=drained-by={served.namespace}"
    drain = ("kubectl", "drain", node, ours, "--ignore-daemonsets", "--delete-emptydir-data")

    with under_load(served) as sent:
        with subprocess.Popen(drain, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as draining:
            assert draining.stdout
            try:
                said = ""
                # With one pod gone and nowhere to put another, the budget holds the second one back.
                while "disruption budget" not in said:
                    line = draining.stdout.readline()
                    assert line, f"the drain went through, and nothing was left to serve:\n{said}"
                    said += line
                assert len(served.ready) == 1
            finally:
                kubectl("uncordon", node)  # there is another node, as it were
            said += draining.communicate(timeout=120)[0]
        after = served.until_ready(2)

    assert draining.returncode == 0, said
    assert not before & {pod.metadata.uid for pod in after}
    assert not sent.faults


def test_a_killed_process_takes_with_it_what_it_had_in_flight_and_no_more(
    served: Release, container_process: Callable[[str, str], int]
) -> None:
    victim = served.pods[0]

    with under_load(served) as sent:
        number = container_process(served.namespace, victim.metadata.name)
        killed = time.monotonic()
        os.kill(number, signal.SIGKILL)
        until(lambda: restarts(served, victim), seconds=30, what="a new start")
        served.until_ready(2)
        back = time.monotonic()

    # Until the Service has heard of it, a connection is refused, or the process that was started anew answers
    # that its model is not ready: in both cases nothing was begun, and the request may be sent again.
    not_ready = '503 {"error":"the service is not ready'
    refused = [answer for answer in lost(sent) if answer.fault.startswith(("refused", not_ready))]
    cut = [answer for answer in lost(sent) if answer not in refused]
    heard = max((answer.began - killed for answer in refused), default=0)
    print(
        f"killed: {len(cut)} in flight were cut off; {len(refused)} requests were refused in the "
        f"{heard:.1f} s until the Service knew; two pods were ready after {back - killed:.1f} s"
    )
    assert all(answer.fault.startswith("cut off") for answer in cut)
    # The kernel takes a moment to close a process's connections.
    assert all(answer.began < killed + 0.5 and killed <= answer.began + answer.seconds for answer in cut)
    assert all(killed <= answer.began + answer.seconds <= back for answer in refused)


def test_a_process_that_stands_still_is_found_and_started_anew(
    served: Release, container_process: Callable[[str, str], int], api: client.ApiClient
) -> None:
    victim = served.pods[0]

    with under_load(served) as sent:
        number = container_process(served.namespace, victim.metadata.name)
        stopped = time.monotonic()
        os.kill(number, signal.SIGSTOP)
        until(lambda: len(served.endpoints()) == 1, seconds=30, what="the pod's address out of the Service")
        out = time.monotonic()
        until(lambda: restarts(served, victim), seconds=120, what="a new start")
        served.until_ready(2)
        back = time.monotonic()

    print(
        f"stopped: {len(lost(sent))} requests lost, of those sent in the {out - stopped:.1f} s until the "
        f"Service knew; two pods were ready after {back - stopped:.1f} s"
    )
    events = client.CoreV1Api(api).list_namespaced_event(served.namespace).items
    said = [event.message for event in events if event.involved_object.name == victim.metadata.name]
    assert any("failed liveness probe" in message for message in said)
    # Each client lost the one that it waited for; kube-proxy is given a second to follow.
    assert len(lost(sent)) <= sent.clients
    assert all(answer.began < out + 1 for answer in lost(sent))
