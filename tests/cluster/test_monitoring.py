"""Watched by a real Prometheus: what it scrapes, shows and warns of, and how a release scales on that.

What cannot be shown here has no exporter, or no past: see WITHOUT_DATA.
"""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import yaml
from kubernetes import client

from ..shared import until
from . import tiny
from .conftest import LOCAL, Cluster, Run
from .load import IMAGE, Load
from .ramp import Ramp
from .release import CHART, ROOT, SLIM, SMALL, Release, Values

pytestmark = pytest.mark.long

WITHOUT_DATA = {
    "DCGM_": "no GPU, and so no DCGM exporter",
    "kube_horizontalpodautoscaler": "kube-state-metrics is not in the local cluster",
    "offset 1d": "nothing was measured a day before",
}
"""What a query has in it that can have no data here, and why. KEDA is not in the local cluster either."""

DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in CHART.glob("dashboards/*.json")}
WATCHED: Values = {
    "monitoring": {
        "serviceMonitor": {"enabled": True, "interval": "1s"},
        "rules": {"enabled": True},
        "dashboards": {"enabled": True},
    }
}


class Prometheus:
    """The cluster's Prometheus, by its HTTP API."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def get(self, path: str, **parameters: str | float) -> Any:
        answer = self._http.get(path, params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, promql: str) -> list[Any]:
        found: list[Any] = self.get("/query", query=promql)["result"]
        return found

    def names(self, selector: str) -> set[str]:
        """Names of the series that have been seen."""
        return set(self.get("/label/__name__/values", **{"match[]": selector}))

    def alerts(self, release: Release) -> dict[str, str]:
        """The state of each alert of `release` that is pending or firing."""
        return {
            alert["labels"]["alertname"]: alert["state"]
            for alert in self.get("/alerts")["alerts"]
            if (alert["labels"].get("namespace"), alert["labels"].get("release"))
            == (release.namespace, release.name)
        }


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster, api: client.ApiClient) -> Iterator[Prometheus]:
    if not cluster.local:
        pytest.skip("what a cluster elsewhere is watched by is not ours to change")
    done = subprocess.run([LOCAL, "monitoring"], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    service = client.CoreV1Api(api).read_namespaced_service("prometheus", "monitoring")
    with httpx.Client(base_url=f"http://{service.spec.cluster_ip}:9090/api/v1", timeout=30) as http:
        yield Prometheus(http)


@contextlib.contextmanager
def own_namespace(api: client.ApiClient) -> Iterator[str]:
    """A namespace whose pods may see folders of this machine; told to go when the block is left."""
    core = client.CoreV1Api(api)
    name = f"test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


def packed(weights: Path, folder: Path) -> Path:
    """The weights, packed as `folder`."""
    command: list[str | Path] = [sys.executable, "-m", "pthserve", "pack", weights, "-o", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    return folder


def serving(folder: Path) -> Values:
    """Has a release serve `folder`/served, a packed model or a link to one."""
    return {
        "settings": {"model": "/watched/served", "name": "watched"},
        "extraVolumes": [{"name": "watched", "hostPath": {"path": str(folder)}}],
        "extraVolumeMounts": [{"name": "watched", "mountPath": "/watched"}],
    }


@dataclass(frozen=True)
class Watched:
    """Two releases that Prometheus watches.

    awake: serves what is in `folder`; asleep: has no pod.
    """

    awake: Release
    asleep: Release
    folder: Path

    def swap(self) -> None:
        """Put the other model in place, as one does whose readers must never find none."""
        other = "two" if (self.folder / "served").readlink() == Path("one") else "one"
        (self.folder / "next").symlink_to(other)
        (self.folder / "next").rename(self.folder / "served")


@pytest.fixture(scope="module")
def watched(
    prometheus: Prometheus,
    image: Callable[[str], str],
    api: client.ApiClient,
    helm: Run,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    image("slim")
    folder = tmp_path_factory.mktemp("watched")
    folder.chmod(0o755)
    for seed, name in enumerate(("one", "two")):
        packed(tiny.make(folder / f"{name}.pth", seed), folder / name)
    (folder / "served").symlink_to("one")
    with own_namespace(api) as namespace:
        asleep = Release(namespace, api, helm, "dogs")
        asleep.upgrade(SMALL, SLIM, WATCHED, {"replicas": 0})
        awake = Release(namespace, api, helm)
        awake.upgrade(SMALL, SLIM, WATCHED, serving(folder), {"settings": {"maxInflight": 4, "shadow": 1}})
        yield Watched(awake, asleep, folder)


class Traffic:
    """All kinds of requests to a release that has little room, so that there is something of everything."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._url = watched.awake.address
        self._stopped = threading.Event()
        self._load = Load(self._url, clients=8, pause=0.02)
        self._odd = threading.Thread(target=self._ask_oddly, daemon=True)

    def __enter__(self) -> None:
        self._load.__enter__()
        self._odd.start()

    def __exit__(self, *raised: Any) -> None:
        self._stopped.set()
        self._odd.join(120)
        self._load.__exit__(*raised)
        print(f"traffic: {self._load}")

    def _ask_oddly(self) -> None:
        picture = IMAGE.read_bytes()
        host, port = self._url.removeprefix("http://").split(":")
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(picture)}\r\n"
        head += "Content-Type: image/jpeg\r\n\r\n"
        with httpx.Client(base_url=self._url, timeout=90) as http:
            while not self._stopped.is_set():
                with socket.create_connection((host, int(port))) as leaving:
                    leaving.sendall(head.encode() + picture)
                    time.sleep(0.005)
                body = {
                    "inputs": [
                        {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [9] * 192}
                    ]
                }
                http.post("/v2/models/watched/infer", json=body)
                http.get("/nowhere")
                self._watched.swap()
                http.post("/v2/repository/models/watched/load")


def asked(promql: str) -> set[str]:
    """Names of the series in a query."""
    return set(re.findall(r"([A-Za-z_:][\w:]*)\{", promql))


def has_no_data(promql: str) -> bool:
    return any(part in promql for part in WITHOUT_DATA)


def rules(api: client.ApiClient, namespace: str) -> list[dict[str, str]]:
    found = client.CustomObjectsApi(api).list_namespaced_custom_object(
        "monitoring.coreos.com", "v1", namespace, "prometheusrules"
    )
    return [rule for item in found["items"] for group in item["spec"]["groups"] for rule in group["rules"]]


def test_the_monitor_is_picked_up(prometheus: Prometheus, watched: Watched) -> None:
    release = watched.awake

    def targets() -> list[Any]:
        pool = f"serviceMonitor/{release.namespace}/{release.fullname}/0"
        found = prometheus.get("/targets", scrapePool=pool, state="active")["activeTargets"]
        return [target for target in found if target["health"] == "up"]

    (target,) = until(targets, seconds=180, what="a target that is up")
    (pod,) = release.pods
    labels = target["labels"]
    assert (labels["release"], labels["namespace"], labels["pod"]) == (
        "cats",
        release.namespace,
        pod.metadata.name,
    )


def test_every_panel_has_data_and_every_name_a_series(
    prometheus: Prometheus, watched: Watched, api: client.ApiClient
) -> None:
    release = watched.awake
    chosen = {
        "$namespace": release.namespace,
        "$release": release.name,
        "$pod": ".*",
        "$__rate_interval": "15s",
    }
    panels = {
        f"{dashboard['title']}: {panel['title']} {target['refId']}": target["expr"]
        for dashboard in DASHBOARDS.values()
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    for name, value in chosen.items():
        panels = {title: query.replace(name, value) for title, query in panels.items()}
    possible = {title: query for title, query in panels.items() if not has_no_data(query)}
    recorded = rules(api, release.namespace)
    adapter = yaml.safe_load((ROOT / "k8s/monitoring/adapter.yaml").read_text())["rules"]
    scaled = {
        f"pthserve_{name}" for name in re.findall(r"\((.*?)\)", adapter[0]["seriesQuery"])[0].split("|")
    }
    names = {name for query in possible.values() for name in asked(query)}
    names |= {name for rule in recorded for name in asked(rule["expr"])}
    names |= {rule["record"] for rule in recorded if "record" in rule} | scaled

    lacking: set[str] = set()

    def all_there() -> bool:
        lacking.clear()
        lacking.update(title for title, query in possible.items() if not prometheus.query(query))
        lacking.update(names - prometheus.names(f'{{namespace="{release.namespace}"}}'))
        return not lacking

    with Traffic(watched):
        try:
            until(all_there, seconds=90, what="data for every panel")
        except AssertionError as error:
            raise AssertionError(f"without data: {sorted(lacking)}") from error
    print(f"{len(possible)} queries of {len(panels)} have data, {len(names)} names a series; without are:")
    for title in sorted(panels.keys() - possible.keys()):
        print(f"  {title}: {next(why for part, why in WITHOUT_DATA.items() if part in panels[title])}")


def test_an_autoscaler_can_ask_for_every_metric_of_the_adapter(watched: Watched, kubectl: Run) -> None:
    release = watched.awake

    def values(metric: str) -> list[Any]:
        path = f"/apis/custom.metrics.k8s.io/v1beta1/namespaces/{release.namespace}/pods/*/{metric}"
        said = kubectl("get", "--raw", path, check=False)
        return list(json.loads(said.stdout)["items"]) if said.returncode == 0 else []

    for metric in ("pthserve_saturation", "pthserve_inflight_requests"):
        (item,) = until(partial(values, metric), seconds=60, what=metric)
        assert item["describedObject"]["name"] == release.pods[0].metadata.name


SECONDS = 0.06
"""What a forward pass of the stand-in takes for each image."""
ACCELERATOR = f"""
# A stand-in for an accelerator: a forward pass takes its time, and no CPU. All else is as it is shipped.
import time
from pthserve.engines.openvino_engine import OpenVINOEngine

run = OpenVINOEngine.__call__

def wait(self, batch):
    time.sleep({SECONDS} * len(batch))
    return run(self, batch)

OpenVINOEngine.__call__ = wait
"""
CAPACITY = 1 / SECONDS
"""Images a second that one pod can answer."""
COURSE = [(0.0, 0.25 * CAPACITY), (20.0, 0.25 * CAPACITY), (170.0, 1.5 * CAPACITY)]
"""The load: a while at a quarter of what one pod can do, then ever more, up to one and a half times that."""
MOST = 3


@dataclass
class Scaling:
    """A release that scales on `metric`, the load on it, and what became of both.

    seen: moments, with the pods that were ready and what the autoscaler measured.
    """

    metric: str
    release: Release
    autoscaler: client.AutoscalingV2Api
    ramp: Ramp
    seen: list[tuple[float, int, str]] = field(default_factory=list)

    def look(self) -> int:
        """Note how it is now, and send requests to the pods that are ready; how many these are."""
        self.ramp.pods = self.pods() or self.ramp.pods
        self.seen.append((self.ramp.now, len(self.ramp.pods), self.measured()))
        return len(self.ramp.pods)

    def pods(self) -> list[str]:
        return [f"http://{address}:8000" for address in self.release.endpoints()]

    def measured(self) -> str:
        name, namespace = self.release.fullname, self.release.namespace
        status = self.autoscaler.read_namespaced_horizontal_pod_autoscaler(name, namespace).status
        for metric in status.current_metrics or ():
            if metric.pods:
                return str(metric.pods.current.average_value)
            if metric.container_resource:
                return f"{metric.container_resource.current.average_utilization}%"
        return ""

    def reached(self, pods: int) -> float:
        """When so many pods were first ready; infinite where they never were."""
        return next((moment for moment, ready, _ in self.seen if ready >= pods), inf)

    def __str__(self) -> str:
        steps = [
            f"{pods} pods after {self.reached(pods):.0f} s" for pods in (2, 3) if self.reached(pods) < inf
        ]
        return f"{self.metric}: {', '.join(steps) or 'one pod for all the time'}"

    def line(self, begin: float, end: float) -> str:
        """What was seen between two moments."""
        _, ready, measured = next(seen for seen in reversed(self.seen) if seen[0] <= end)
        p95, lost = self.ramp.p95(begin, end) * 1000, self.ramp.lost(begin, end)
        return f"{self.metric} {measured:>5}, {ready} pods, p95 {p95:4.0f} ms, {lost:3} lost"


@pytest.fixture
def scaling(watched: Watched, api: client.ApiClient, helm: Run) -> Iterator[list[Scaling]]:
    """Two releases that are alike but for the metric they scale on, which their autoscalers have measured."""
    (watched.folder / "sitecustomize.py").write_text(ACCELERATOR)
    picture = watched.folder / "small.jpg"
    PIL.Image.open(IMAGE).resize((96, 64)).save(picture)
    values: Values = {
        "extraEnv": [{"name": "PYTHONPATH", "value": "/watched"}],
        "resources": {"requests": {"cpu": "300m"}, "limits": {"cpu": "1"}},
        "monitoring": {"serviceMonitor": {"interval": "5s"}},
    }
    # As the chart has it, but for the five quiet minutes before a pod goes.
    soon = {"stabilizationWindowSeconds": 15, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 5}]}
    autoscaling = {
        "enabled": True,
        "maxReplicas": MOST,
        "target": {"saturation": 0.5, "cpu": 50},
        "behavior": {"scaleDown": soon},
    }
    with own_namespace(api) as namespace:
        found = []
        for metric in ("saturation", "cpu"):
            release = Release(namespace, api, helm, metric)
            chosen = {"autoscaling": {**autoscaling, "metric": metric}}
            release.upgrade(SMALL, SLIM, WATCHED, serving(watched.folder), values, chosen, wait=False)
            ramp = Ramp(picture, [], list(COURSE))
            found.append(Scaling(metric, release, client.AutoscalingV2Api(api), ramp))
        for one in found:
            one.release.until_ready(1)
            until(one.measured, seconds=180, what=f"a measurement of {one.metric}")
            one.ramp.pods = one.pods()
        yield found


def test_saturation_brings_pods_before_callers_notice_and_quiet_takes_them_away(
    scaling: list[Scaling],
) -> None:
    by_saturation, by_cpu = scaling
    ramp = by_saturation.ramp

    def look() -> list[int]:
        time.sleep(1)
        return [one.look() for one in scaling]

    with by_cpu.ramp, ramp:
        until(lambda: look() and ramp.now > COURSE[-1][0] + 10, seconds=600, what="the end of the load")
        loaded = ramp.now
        for one in scaling:
            one.ramp.settle(COURSE[0][1])
        until(lambda: look()[0] == 1, seconds=180, what="one pod again")
        quiet = ramp.now

    times, rates = zip(*COURSE, strict=True)
    for begin in range(0, int(loaded), 10):
        cells = " | ".join(one.line(begin, begin + 10) for one in scaling)
        print(f"{begin:3} s, {np.interp(begin, times, rates):4.1f}/s: {cells}")
    print(f"{by_saturation}; one again {quiet - loaded:.0f} s after the load; {by_cpu}")
    third = by_saturation.reached(MOST)
    assert third < loaded
    usual = ramp.p95(5, COURSE[1][0])
    # Over half a minute: the machine may stand still for a moment without anybody's doing.
    edges = np.linspace(COURSE[1][0], third, max(2, round(third / 30))).tolist()
    worst = max(ramp.p95(*window) for window in pairwise(edges))
    print(f"p95 {usual * 1000:.0f} ms before, at most {worst * 1000:.0f} ms until the third pod was ready")
    assert worst < 2 * usual
    assert not ramp.lost(0, quiet)


def test_an_alert_is_pending_fires_and_is_resolved(prometheus: Prometheus, watched: Watched) -> None:
    """That nobody serves a model, as the chart has it: it is two minutes old when it fires."""
    release, name = watched.asleep, "PthserveNoReadyPod"
    until(lambda: prometheus.alerts(release).get(name) == "firing", seconds=180, what="a firing alert")
    selector = f'ALERTS{{alertname="{name}",namespace="{release.namespace}",release="{release.name}"}}'
    history = prometheus.get("/query", query=f"{selector}[10m]")["result"]
    spans = {
        series["metric"]["alertstate"]: [float(series["values"][end][0]) for end in (0, -1)]
        for series in history
    }
    assert spans["pending"][1] <= spans["firing"][0]
    assert spans["firing"][0] - spans["pending"][0] == pytest.approx(120, abs=15)

    release.upgrade(SMALL, SLIM, WATCHED)
    began = time.monotonic()
    until(lambda: name not in prometheus.alerts(release), seconds=60, what="an alert that is over")
    print(f"pending for {spans['firing'][0] - spans['pending'][0]:.0f} s, then firing")
    print(f"resolved {time.monotonic() - began:.0f} s after a pod was ready")
    assert name not in prometheus.alerts(watched.awake)
