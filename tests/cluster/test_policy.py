"""The chart's NetworkPolicy passes the connections that the values allow, and refuses all others."""

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from kubernetes import client

from ..shared import until
from .load import IMAGE
from .pods import pod
from .release import SLIM, SMALL, Release, Values

pytestmark = pytest.mark.usefixtures("enforced")

Run = Callable[..., subprocess.CompletedProcess[str]]

METRICS: Values = {"settings": {"metricsPort": 9090}}
NAMED: Values = {
    "networkPolicy": {
        "from": [{"podSelector": {"matchLabels": {"app": "caller"}}}],
        "metricsFrom": [{"podSelector": {"matchLabels": {"app": "monitor"}}}],
        "egress": [
            {"ports": [{"port": 53, "protocol": "UDP"}]},
            {"to": [{"podSelector": {"matchLabels": {"app": "collector"}}}], "ports": [{"port": 8080}]},
        ],
    }
}
DISABLED: Values = {"networkPolicy": {"enabled": False}}

ROLES = ("caller", "monitor", "collector", "stranger")
"""Pods around the service, by their names and labels `app`; each accepts connections on port 8080."""
ESPRESSO = 967
REFUSED = ("refused", "timed out", "temporary failure in name resolution")
"""How a client reports that its packets are rejected or dropped."""


@dataclass(frozen=True)
class Connection:
    """A command in a pod that connects to another, and what its output says of an answer."""

    pod: str
    command: tuple[str, ...]
    answered: Callable[[str], bool] = lambda output: True


@pytest.fixture
def enforced(cluster: Any) -> None:
    if not cluster.local:
        pytest.skip("a cluster elsewhere may not enforce a NetworkPolicy")


def predict() -> bytes:
    """A whole request: busybox' wget sends a file only up to its first zero byte."""
    picture = IMAGE.read_bytes()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: cats\r\nConnection: close\r\nContent-Length: {len(picture)}\r\n\r\n"
    )
    return head.encode() + picture


@pytest.fixture
def addresses(api: client.ApiClient, namespace: str, busybox: str, kubectl: Run) -> dict[str, str]:
    """By role, the address of a pod."""
    core = client.CoreV1Api(api)
    request = base64.b64encode(predict()).decode()
    core.create_namespaced_config_map(
        namespace, {"metadata": {"name": "www"}, "binaryData": {"predict": request}}
    )
    for role in ROLES:
        server = pod(role, busybox, "httpd", "-f", "-p", "8080", "-h", "/www")
        server["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
        core.create_namespaced_pod(namespace, server)
    kubectl("wait", "-n", namespace, "pod", *ROLES, "--for=condition=Ready", "--timeout=60s")
    return {role: str(core.read_namespaced_pod(role, namespace).status.pod_ip) for role in ROLES}


def connections(service: client.V1Pod, addresses: dict[str, str]) -> dict[str, Connection]:
    """By name, every connection that is tried."""
    address = service.status.pod_ip
    found: dict[str, Connection] = {}
    for role in ("caller", "monitor", "stranger"):
        found[f"{role} to /predict"] = Connection(
            role,
            ("/bin/busybox", "sh", "-c", f"/bin/busybox nc {address} 8000 </www/predict"),
            lambda output: bool(json.loads(output.splitlines()[-1])["class_index"] == ESPRESSO),
        )
        found[f"{role} to /metrics"] = Connection(
            role,
            ("/bin/busybox", "wget", "-q", "-O-", f"http://{address}:9090/metrics"),
            lambda output: "pthserve_requests_total" in output,
        )
    name = service.metadata.name
    for role in ("collector", "stranger"):
        connect = "import socket, sys; socket.create_connection(sys.argv[1:], timeout=3)"
        found[f"service to {role}"] = Connection(name, ("python", "-c", connect, addresses[role], "8080"))
    resolve = "import socket; socket.getaddrinfo('kubernetes.default.svc.cluster.local', 443)"
    found["service to DNS"] = Connection(name, ("python", "-c", resolve))
    return found


@pytest.fixture
def passing(release: Release, addresses: dict[str, str], kubectl: Run) -> Iterator[Callable[[], set[str]]]:
    """passing(): names of the connections that pass now. All others were refused; none fails otherwise."""

    def passes(name: str, connection: Connection) -> bool:
        command = ("exec", "-n", release.namespace, connection.pod, "--", *connection.command)
        done = kubectl(*command, check=False, timeout=30)
        if done.returncode:
            assert any(how in done.stderr.lower() for how in REFUSED), f"{name}: {done.stderr}"
            return False
        assert connection.answered(done.stdout), f"{name}: {done.stdout}"
        return True

    with ThreadPoolExecutor(4) as pool:

        def passing() -> set[str]:
            (service,) = release.until_ready(1)
            tried = connections(service, addresses)
            passed = pool.map(passes, tried, tried.values())
            return {name for name, passed in zip(tried, passed, strict=True) if passed}

        yield passing


def until_passing(passing: Callable[[], set[str]], expected: set[str]) -> None:
    """Wait until exactly these connections pass: a changed policy is in force a moment later."""

    def agrees() -> bool:
        seen = passing()
        print(f"missing: {sorted(expected - seen)}, not expected: {sorted(seen - expected)}")
        return seen == expected

    until(agrees, "exactly the expected connections", seconds=20)


def test_what_the_values_do_not_allow_is_refused_until_the_policy_is_gone(
    image: Callable[[str], str], release: Release, passing: Callable[[], set[str]], helm: Run
) -> None:
    image("slim")
    to_api = {f"{role} to /predict" for role in ("caller", "monitor", "stranger")}
    to_metrics = {f"{role} to /metrics" for role in ("caller", "monitor", "stranger")}
    egress = {"service to collector", "service to DNS", "service to stranger"}

    # By default everyone may call, and the service connects to nobody.
    release.upgrade(SMALL, SLIM, METRICS)
    until_passing(passing, to_api | to_metrics)

    release.upgrade(SMALL, SLIM, METRICS, NAMED)
    until_passing(
        passing, {"caller to /predict", "monitor to /metrics", "service to collector", "service to DNS"}
    )
    # The chart's test is a caller, too.
    helm("test", release.name, "-n", release.namespace, "--timeout=60s")

    release.upgrade(SMALL, SLIM, METRICS, DISABLED)
    until_passing(passing, to_api | to_metrics | egress)
