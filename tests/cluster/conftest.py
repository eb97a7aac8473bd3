"""A real Kubernetes for the tests: the one $KUBECONFIG points at, else that of k8s/local.

The local one is brought up once a session and taken down at its end, unless it was up before or
PTHSERVE_KEEP_CLUSTER is set. Where the machine cannot carry it the tests are skipped, and fail under CI.
"""

import os
import re
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from kubernetes import client, config, watch

from pthserve.loading.pack import pack
from pthserve.settings import Settings

from . import tiny
from .machine import CACHE, Machine, run
from .release import Release

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "k8s/local/cluster"
VERSION = yaml.safe_load((ROOT / "charts/pthserve/Chart.yaml").read_text())["appVersion"]
UNABLE = 3  # what `cluster check` ends with where the fault is the machine's

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.cluster)
    # What takes the cluster away comes when nobody needs it any more.
    items.sort(key=lambda item: "disposable" in getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:  # a failure is shown with what the cluster says
    report = yield
    namespace = getattr(item, "funcargs", {}).get("namespace")
    if report.when == "call" and report.failed and namespace:
        shown = run("kubectl", "get", "pods,events", "-n", namespace, "-o", "wide", check=False)
        report.sections.append((f"namespace {namespace}", shown.stdout + shown.stderr))
    return report


@dataclass(frozen=True)
class Cluster:
    kubeconfig: Path
    local: bool
    own: bool  # brought up by this session
    before: Machine  # as it was before that


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", f"{CACHE / 'bin'}:{os.environ['PATH']}")
        if given := os.environ.get("KUBECONFIG"):
            run(ROOT / "k8s/local/programs", "helm", "kubernetes", timeout=3600)
            yield Cluster(Path(given), local=False, own=False, before=Machine.now())
            return
        able = run(LOCAL, "check", check=False)  # the packages that it installs are no part of a cluster
        if able.returncode == UNABLE:
            unavailable(able.stderr.strip())
        assert able.returncode == 0, able.stderr
        was_up = run(LOCAL, "env", check=False).returncode == 0
        if not was_up:
            run(LOCAL, "down")  # what a run that was killed left is no part of the machine
        before = Machine.now()
        run(LOCAL, "up", timeout=3600)
        kubeconfig = CACHE / "cluster/kubeconfig"
        environment.setenv("KUBECONFIG", str(kubeconfig))
        yield Cluster(kubeconfig, local=True, own=not was_up, before=before)
        if not was_up and not os.environ.get("PTHSERVE_KEEP_CLUSTER"):
            run(LOCAL, "down")


def unavailable(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kubeconfig(cluster: Cluster) -> Path:
    return cluster.kubeconfig


@pytest.fixture
def machine() -> Callable[[], Machine]:
    return Machine.now


@pytest.fixture
def disposable(cluster: Cluster, api: client.ApiClient, namespaces: list[str]) -> Cluster:
    """The local cluster, for tests that take it down. They run last, once what others used is gone."""
    if not cluster.local:
        pytest.skip("$KUBECONFIG names a cluster that is not ours to take down")
    if not cluster.own:
        pytest.skip("the local cluster was up before the tests: it may be in use")
    _until_deleted(api, namespaces)
    return cluster


@pytest.fixture(scope="session")
def api(kubeconfig: Path) -> Iterator[client.ApiClient]:
    with config.new_client_from_config(str(kubeconfig)) as api:
        yield api


@pytest.fixture(scope="session")
def helm(kubeconfig: Path) -> Run:
    """helm(*arguments, check=True, timeout=600) runs the real helm; what it prints is in .stdout."""
    return lambda *arguments, **kwargs: run("helm", *arguments, **kwargs)


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> Run:
    return lambda *arguments, **kwargs: run("kubectl", *arguments, **kwargs)


@pytest.fixture(scope="session")
def namespaces(cluster: Cluster, api: client.ApiClient) -> Iterator[list[str]]:
    """Those that tests have used and told to go; all are gone at the end."""
    used: list[str] = []
    yield used
    if cluster.local and run(LOCAL, "env", check=False).returncode:
        return  # a test has taken the cluster down, and they went with it
    _until_deleted(api, used)


@pytest.fixture
def namespace(api: client.ApiClient, namespaces: list[str]) -> Iterator[str]:
    """A fresh namespace that enforces the pod security standard `restricted`.

    It is told to go when the test is over. That takes half a minute where pods end as they should, and the
    next test does not wait for it.
    """
    core = client.CoreV1Api(api)
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    core.create_namespace({"metadata": {"name": name, "labels": labels}})
    yield name
    core.delete_namespace(name)
    namespaces.append(name)


def _until_deleted(api: client.ApiClient, namespaces: list[str]) -> None:
    """Wait for each to be gone, and take it off the list."""
    core = client.CoreV1Api(api)
    while namespaces:
        name = namespaces.pop()
        field = f"metadata.name={name}"
        found = core.list_namespace(field_selector=field)
        events = watch.Watch().stream(
            core.list_namespace,
            field_selector=field,
            resource_version=found.metadata.resource_version,
            timeout_seconds=120,
        )
        gone = not found.items or any(event["type"] == "DELETED" for event in events)
        assert gone, f"namespace {name} is still there after 120 s"


@pytest.fixture
def release(namespace: str, api: client.ApiClient, helm: Run) -> Release:
    """A release that is yet to be installed."""
    return Release(namespace, api, helm)


@pytest.fixture
def reachable(cluster: Cluster) -> None:
    """For tests that send requests to a Service's own address, from this machine."""
    if not cluster.local:
        pytest.skip("service addresses of a cluster elsewhere are not routed to this machine")


@pytest.fixture
def claim(cluster: Cluster, namespace: str, kubectl: Run) -> Iterator[Callable[..., str]]:
    """claim(folder): name of a claim on a folder of this machine, after k8s/examples/hostpath-claim.yaml.

    claim(folder, writable=True): one that pods write to.
    """
    if not cluster.local:
        pytest.skip("this machine is no node of a cluster elsewhere")
    made: list[str] = []

    def claim(folder: Path, *, writable: bool = False) -> str:
        folder.chmod(0o777 if writable else 0o755)
        name = f"models-{namespace}-{len(made)}"
        text = (ROOT / "k8s/examples/hostpath-claim.yaml").read_text()
        volume, wanted = yaml.safe_load_all(text.replace("models", name))
        volume["spec"]["claimRef"]["namespace"] = wanted["metadata"]["namespace"] = namespace
        volume["spec"]["hostPath"]["path"] = str(folder)
        if writable:
            volume["spec"]["accessModes"] = wanted["spec"]["accessModes"] = ["ReadWriteMany"]
        kubectl("apply", "-f", "-", input=yaml.safe_dump_all([volume, wanted]))
        made.append(name)
        return name

    yield claim
    for name in made:
        # The claim is in use until its pods are gone, which the namespace sees to.
        kubectl("delete", "persistentvolume", name, "--wait=false")


@pytest.fixture(scope="session")
def port_forward(kubeconfig: Path) -> Callable[..., AbstractContextManager[str]]:
    """with port_forward(namespace, "service/x", 80) as url: a real `kubectl port-forward` on a free port."""

    @contextmanager
    def forward(namespace: str, target: str, port: int | str) -> Iterator[str]:
        command = ["kubectl", "port-forward", "-n", namespace, target, f":{port}", "--address", "127.0.0.1"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout
            try:
                first = process.stdout.readline()
                found = re.match(r"Forwarding from (127\.0\.0\.1:\d+)", first)
                assert found, f"kubectl port-forward: {first}{process.stdout.read()}"
                # It says a line for every connection, and would stand still were they not read.
                reader = threading.Thread(target=process.stdout.read)
                reader.start()
                yield f"http://{found[1]}"
            finally:
                process.kill()
            reader.join()

    return forward


@pytest.fixture(scope="session")
def load(cluster: Cluster) -> Callable[[str], str]:
    """load(image) hands an image of buildah's store to the node. Another cluster must have it already."""

    def load(image: str) -> str:
        if cluster.local:
            run(LOCAL, "load", image)
        return image

    return load


@pytest.fixture(scope="session")
def image(cluster: Cluster, load: Callable[[str], str]) -> Callable[[str], str]:
    """image("slim") or image("full"): that target of the Dockerfile, built and on the node; its name.

    It is the name that the chart takes it by when no values say otherwise.
    """
    made: dict[str, str] = {}

    def image(target: str) -> str:
        if target not in made:
            name = f"localhost/pthserve:{VERSION}-{target}"
            if cluster.local:
                run(ROOT / "scripts/image", target, name, timeout=3600)
            made[target] = load(name)
        return made[target]

    return image


@pytest.fixture(scope="session")
def another_tag(image: Callable[[str], str], load: Callable[[str], str], cluster: Cluster) -> str:
    """A tag under which the slim image is on the node once more."""
    if not cluster.local:
        pytest.skip("a cluster elsewhere has no second image")
    name, tag = image("slim"), f"{VERSION}-slim-next"
    another = f"{name.rpartition(':')[0]}:{tag}"
    run("buildah", "tag", name, another)
    load(another)
    return tag


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small models: one.pth, two.pth, and these packed as folders, all in `folder`."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        weights = tiny.make(folder / f"{name}.pth", seed)
        pack(str(weights), folder / name, Settings(tune_budget=0))
        run("chmod", "-R", "a+rX", folder / name)
    return folder


@pytest.fixture(scope="session")
def busybox(cluster: Cluster, load: Callable[[str], str]) -> str:
    """A small image for pods that play a part beside the service: a web server, a client."""
    if not cluster.local:
        return "busybox:1"
    run(ROOT / "scripts/packages", "busybox-static")
    name = "localhost/busybox:1"
    folder = Path(shutil.which("busybox") or "").resolve().parent
    dockerfile = 'FROM scratch\nCOPY busybox /bin/busybox\nUSER 65534:65534\nENTRYPOINT ["/bin/busybox"]\n'
    run("buildah", "build", "-q", "--layers", "-t", name, "-f", "-", folder, input=dockerfile)
    return load(name)


@pytest.fixture(scope="session")
def container_process(cluster: Cluster, api: client.ApiClient) -> Callable[[str, str], int]:
    """container_process(namespace, pod): the number on this machine of its container's first process."""

    def find(namespace: str, pod: str) -> int:
        if not cluster.local:
            pytest.skip("the processes of a cluster elsewhere cannot be reached")
        status = client.CoreV1Api(api).read_namespaced_pod(pod, namespace).status
        container = status.container_statuses[0].container_id.partition("://")[2]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                inside = container in (process / "cgroup").read_text()
                first = re.search(r"^NSpid:.*\s1$", (process / "status").read_text(), re.MULTILINE)
            except OSError:
                continue  # it ended while we looked
            if inside and first:
                return int(process.name)
        raise LookupError(f"no process of {namespace}/{pod}")

    return find
