"""No pod without requests, and no request lost for it: a real gateway holds it, and KEDA starts a pod."""

import io
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from kubernetes import client
from PIL import Image

from pthserve.protos import inference_pb2 as pb

from .calls import METHOD
from .conftest import LOCAL, Cluster, Run
from .load import IMAGE
from .release import SLIM, SMALL, Release, Values

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("reachable")]

IDLE = 10
TO_ZERO: Values = {
    "autoscaling": {
        "minReplicas": 0,
        "maxReplicas": 1,
        "toZero": {"idleSeconds": IDLE},
        "keda": {"serverAddress": "http://prometheus.monitoring:9090"},
    },
    "settings": {"grpcPort": 8001, "name": "cats"},
}
PATIENCE = 60.0


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, api: client.ApiClient) -> str:
    """The gateway's address, once there are KEDA and a Prometheus, too."""
    if not cluster.local:
        pytest.skip("what a cluster elsewhere has is not ours to change")
    done = subprocess.run([LOCAL, "keda"], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return str(client.CoreV1Api(api).read_namespaced_service("traefik", "gateways").spec.cluster_ip)


class Asleep:
    """A release without pods, and its clients."""

    def __init__(self, release: Release, gateway: str, kubectl: Run) -> None:
        self.release = release
        self.gateway = gateway
        self.kubectl = kubectl
        self.host = f"http.{release.namespace}.example"

    def ask(self, content: bytes | Iterator[bytes] = b"") -> httpx.Response:
        """Send an image through the gateway."""
        return httpx.post(
            f"http://{self.gateway}/predict",
            content=content or IMAGE.read_bytes(),
            headers={"Host": self.host, "Content-Type": "image/png" if content else "image/jpeg"},
            timeout=PATIENCE,
        )


@pytest.fixture
def values(image: Callable[[str], str], models: Path, claim: Callable[[Path], str], namespace: str) -> Values:
    image("slim")
    parents = [{"name": "public", "namespace": "gateways"}]
    routes = {
        name: {"enabled": True, "parentRefs": parents, "hostnames": [f"{kind}.{namespace}.example"]}
        for name, kind in (("httpRoute", "http"), ("grpcRoute", "grpc"))
    }
    return {
        "weights": {"source": "pvc", "file": "one", "pvc": {"existingClaim": claim(models)}},
        **routes,
    }


@pytest.fixture
def asleep(gateway: str, release: Release, values: Values, kubectl: Run) -> Asleep:
    release.upgrade(SMALL, SLIM, TO_ZERO, values)
    asleep = Asleep(release, gateway, kubectl)
    asleep.release.until_none()
    return asleep


def _large() -> bytes:
    """A PNG of several megabytes: more than the buffers of connections take."""
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_the_first_request_waits_and_is_answered_and_the_pod_goes_again(asleep: Asleep) -> None:
    for _ in range(2):
        began = time.monotonic()
        reply = asleep.ask()
        print(f"answered after {time.monotonic() - began:.2f} s")
        assert reply.status_code == 200
        assert reply.json()["model"]["name"] == "cats"
        asleep.release.until_none()


def test_many_first_requests_are_all_answered_large_and_streamed_ones_too(asleep: Asleep) -> None:
    large = _large()
    assert len(large) > 4_000_000

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    with ThreadPoolExecutor(24) as clients:
        asked = [
            *(clients.submit(asleep.ask) for _ in range(16)),
            *(clients.submit(asleep.ask, large) for _ in range(4)),
            *(clients.submit(asleep.ask, chunks()) for _ in range(4)),
        ]
        replies = [one.result() for one in asked]
    assert [reply.status_code for reply in replies] == [200] * 24
    assert len({json.dumps(reply.json()["probabilities"]) for reply in replies[16:]}) == 1


def test_requests_at_any_moment_of_going_and_coming_are_answered(asleep: Asleep) -> None:
    """The pauses end around the moment at which the last pod is told to go, drains, or has just ended."""
    seed = random.randrange(2**32)
    print("seed", seed)
    pauses = random.Random(seed)
    statuses = []
    for _ in range(10):
        statuses.append(asleep.ask().status_code)
        time.sleep(pauses.uniform(IDLE - 1, IDLE + 12))
    assert statuses == [200] * 10


def test_the_first_call_over_grpc_waits_and_is_answered(asleep: Asleep) -> None:
    request = pb.ModelInferRequest(model_name="cats")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(IMAGE.read_bytes())
    options = [("grpc.default_authority", f"grpc.{asleep.release.namespace}.example")]
    with grpc.insecure_channel(f"{asleep.gateway}:80", options=options) as channel:
        call: Any = channel.unary_unary(METHOD, response_deserializer=pb.ModelInferResponse.FromString)
        assert call(request.SerializeToString(), timeout=PATIENCE).model_name == "cats"


def test_a_pod_runs_where_no_prometheus_can_be_asked(asleep: Asleep, values: Values) -> None:
    lost = {"autoscaling": {"keda": {"serverAddress": "http://prometheus.nowhere:9090"}}}
    asleep.release.upgrade(SMALL, SLIM, TO_ZERO, values, lost)
    asleep.release.until_ready(1, seconds=120)


def test_a_request_that_no_pod_can_answer_is_told_so_in_the_end(asleep: Asleep, values: Values) -> None:
    broken = {"weights": {"file": "absent"}, "autoscaling": {"toZero": {"holdSeconds": 8}}}
    asleep.release.upgrade(SMALL, SLIM, TO_ZERO, values, broken)
    began = time.monotonic()
    assert asleep.ask().status_code in (502, 504)
    assert 8 <= time.monotonic() - began < 15
