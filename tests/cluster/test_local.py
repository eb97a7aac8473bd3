"""The local cluster is a real one, and nothing of it stays behind."""

import contextlib
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from ..shared import until
from .pods import pod

Run = Callable[..., subprocess.CompletedProcess[str]]

LOCAL = Path(__file__).parents[2] / "k8s/local/cluster"
CACHE = Path(os.environ.get("PTHSERVE_CACHE", "/var/cache/pthserve"))


@pytest.fixture
def web(api: client.ApiClient, kubectl: Run, namespace: str, busybox: str) -> str:
    """The pod `web` that says hello, behind the service `hello`."""
    core = client.CoreV1Api(api)
    core.create_namespaced_config_map(
        namespace, {"metadata": {"name": "www"}, "data": {"index.html": "hello"}}
    )
    server = pod("web", busybox, "httpd", "-f", "-p", "8080", "-h", "/www")
    server["spec"]["containers"][0]["readinessProbe"] = {
        "httpGet": {"path": "/index.html", "port": 8080},
        "periodSeconds": 1,
    }
    core.create_namespaced_pod(namespace, server)
    ports = [{"port": 80, "targetPort": 8080}]
    core.create_namespaced_service(
        namespace, {"metadata": {"name": "hello"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
    )
    kubectl("wait", "-n", namespace, "pod/web", "--for=condition=Ready", "--timeout=60s")
    return "web"


def test_the_node_is_ready(api: client.ApiClient) -> None:
    nodes = client.CoreV1Api(api).list_node().items

    assert nodes
    for node in nodes:
        assert {c.type: c.status for c in node.status.conditions}["Ready"] == "True"


def test_a_pod_finds_a_service_by_its_name(kubectl: Run, namespace: str, web: str) -> None:
    for name in ("hello", f"hello.{namespace}.svc.cluster.local"):
        fetch = ("exec", "-n", namespace, web, "--", "/bin/busybox", "wget", "-qO-", f"http://{name}/")

        assert until(lambda: kubectl(*fetch, check=False).stdout, seconds=10) == "hello"  # noqa: B023


@pytest.mark.parametrize("target", ["pod/web:8080", "service/hello:80"])
def test_a_port_forward_reaches_a_pod(
    namespace: str, web: str, port_forward: Callable[..., AbstractContextManager[str]], target: str
) -> None:
    with port_forward(namespace, *target.split(":")) as url, urllib.request.urlopen(url, timeout=10) as said:
        assert said.read() == b"hello"


def test_a_service_answers_at_its_address_on_this_machine(
    api: client.ApiClient, cluster: Any, namespace: str, web: str
) -> None:
    if not cluster.local:
        pytest.skip("service addresses of a cluster elsewhere are not routed to this machine")
    address = client.CoreV1Api(api).read_namespaced_service("hello", namespace).spec.cluster_ip

    def answer() -> bytes | None:
        try:
            with urllib.request.urlopen(f"http://{address}", timeout=1) as said:
                return said.read()
        except OSError:
            return None  # kube-proxy has not heard of it yet

    assert until(answer, seconds=10) == b"hello"


def test_nothing_outside_this_machine_can_be_reached(
    cluster: Any, kubectl: Run, namespace: str, web: str
) -> None:
    if not cluster.local:
        pytest.skip("another cluster may well reach the outside")
    # 192.0.2.0/24 is nobody's: it is for documentation.
    went = kubectl("exec", "-n", namespace, web, "--", "/bin/busybox", "nc", "192.0.2.77", "80", check=False)

    assert "Network is unreachable" in went.stderr


def test_the_metrics_api_tells_what_a_pod_uses(api: client.ApiClient, namespace: str, web: str) -> None:
    metrics = client.CustomObjectsApi(api)

    def usage() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = metrics.list_namespaced_custom_object(
            "metrics.k8s.io", "v1beta1", namespace, "pods"
        )["items"]
        return found

    (item,) = until(usage, seconds=60)
    assert item["metadata"]["name"] == web
    assert item["containers"][0]["usage"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize(
    "security",
    [
        {"runAsNonRoot": False},
        {"allowPrivilegeEscalation": True},
        {"capabilities": {}},
        {"seccompProfile": {"type": "Unconfined"}},
    ],
    ids=lambda security: next(iter(security)),
)
def test_a_pod_that_asks_for_more_than_restricted_is_refused(
    api: client.ApiClient, namespace: str, security: dict[str, object]
) -> None:
    with pytest.raises(ApiException, match="violates PodSecurity") as refused:
        client.CoreV1Api(api).create_namespaced_pod(namespace, pod("greedy", "any", **security))

    assert refused.value.status == 403


def test_a_container_has_a_process_on_this_machine(
    namespace: str, web: str, container_process: Callable[[str, str], int]
) -> None:
    number = container_process(namespace, web)

    assert b"httpd" in Path(f"/proc/{number}/cmdline").read_bytes()


def test_an_image_that_does_not_exist_is_refused_in_one_line(cluster: Any) -> None:
    if not cluster.local:
        pytest.skip("loads into the local cluster")
    refused = subprocess.run([LOCAL, "load", "localhost/none:1"], capture_output=True, text=True)

    assert (refused.returncode, refused.stderr) == (1, "cluster: buildah has no image localhost/none:1\n")


def test_up_is_quick_where_the_cluster_works(cluster: Any) -> None:
    if not cluster.local:
        pytest.skip("it is not ours to bring up")
    began = time.monotonic()
    local("up")

    assert time.monotonic() - began < 10


def test_without_root_it_says_so_in_one_line() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another")
    # Read aloud by root: another user need not be able to read the checkout.
    refused = subprocess.run(
        ["bash", "-s", "up"],
        input=LOCAL.read_text(),
        env={**os.environ, "PTHSERVE_CACHE": "/tmp/none"},
        user=65534,
        capture_output=True,
        text=True,
    )

    assert refused.returncode == 3
    assert refused.stderr == "cluster: needs root: namespaces, mounts and firewall rules are made\n"


# What takes `disposable` runs after all else: it ends the cluster.


def test_down_leaves_nothing_behind(disposable: Any, machine: Callable[[], Any]) -> None:
    first = node_processes()[0]
    namespaces = {link.readlink() for link in Path(f"/proc/{first.pid}/ns").iterdir() if link.name != "user"}
    assert machine() != disposable.before  # it does see a cluster that is up

    local("down")

    assert machine() == disposable.before
    held = {link.readlink() for process in psutil.pids() for link in namespaces_of(process)}
    ours = {link.readlink() for link in namespaces_of(os.getpid())}
    assert not (namespaces - ours) & held
    assert not (CACHE / "cluster").exists()


@pytest.mark.long
@pytest.mark.parametrize("victims", ["all", "kubelet", "first", "up"])
def test_up_recovers_after_a_sigkill(disposable: Any, kubectl: Run, victims: str) -> None:
    local("up")
    if victims == "up":
        local("down")
        with subprocess.Popen([LOCAL, "up"], stderr=subprocess.DEVNULL) as up:
            until(lambda: [p for p in node_processes() if p.name() == "kubelet"], seconds=60)
            up.kill()
    else:
        kill(node_processes(), victims)

    local("up")

    kubectl("wait", "node/node", "--for=condition=Ready", "--timeout=1s")


@pytest.mark.long
def test_down_copes_with_what_a_sigkill_left(disposable: Any, machine: Callable[[], Any]) -> None:
    local("up")
    kill(node_processes(), "all")

    local("down")

    assert machine() == disposable.before


def local(command: str) -> None:
    done = subprocess.run([LOCAL, command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def node_processes() -> list[psutil.Process]:
    """All that run in the local cluster, its first process first; none while there is none."""
    try:
        outside = psutil.Process(int((CACHE / "cluster/pid").read_text()))
        return outside.children(recursive=True)
    except (OSError, ValueError, psutil.NoSuchProcess):
        return []


def namespaces_of(process: int) -> list[Path]:
    try:
        return [link for link in Path(f"/proc/{process}/ns").iterdir() if link.readlink()]
    except OSError:
        return []  # it ended while we looked


def kill(processes: list[psutil.Process], victims: str) -> None:
    assert processes
    chosen = {
        "all": processes,
        "first": processes[:1],
        "kubelet": [process for process in processes if process.name() == "kubelet"],
    }[victims]
    assert chosen
    for process in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):  # it went with the first
            process.kill()
