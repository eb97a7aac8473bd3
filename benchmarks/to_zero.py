"""`python -m benchmarks.to_zero`: from no pods to the first answer, in the local cluster, try by try.

The release is one with autoscaling.minReplicas 0 (docs/scale-to-zero.md), behind the local cluster's gateway.
Each try waits until its last pod has ended and a random pause has passed, sends one image, and waits for the
answer. Where the time went is what a watch of the pods, and their log, have seen by then.
"""

import json
import random
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from kubernetes import client, config, watch

IMAGE = Path(__file__).parents[1] / "weights/imagenet/golden/coffee.jpg"
PATIENCE = 120
STEPS = ("created", "scheduled", "address", "endpoint", "loaded", "answered")
"""The pod exists, has a node, has an address; the Service has it; its model is loaded; it has answered."""


@dataclass
class Try:
    """One request. `moments`: seconds from its start to each of STEPS that was seen."""

    status: int = 0
    moments: dict[str, float] = field(default_factory=dict)


class Pods:
    """The pods of a release, and what happens to them."""

    def __init__(self, namespace: str, release: str) -> None:
        self._core = client.CoreV1Api()
        self._namespace = namespace
        self._selector = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=server"

    def exist(self) -> bool:
        return bool(self._core.list_namespaced_pod(self._namespace, label_selector=self._selector).items)

    def watch(self, seen: dict[str, float]) -> None:
        """Write the time of each step into `seen`, until the pod is ready."""
        events = watch.Watch().stream(
            self._core.list_namespaced_pod,
            self._namespace,
            label_selector=self._selector,
            timeout_seconds=PATIENCE,
        )
        for event in events:
            pod, now = event["object"], time.time()
            seen.setdefault("created", now)
            if pod.spec.node_name:
                seen.setdefault("scheduled", now)
            if pod.status.pod_ip:
                seen.setdefault("address", now)
            if any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ()):
                break

    def watch_endpoints(self, seen: dict[str, float]) -> None:
        """Write into `seen` when a Service of the release has an address."""
        events = watch.Watch().stream(
            client.DiscoveryV1Api().list_namespaced_endpoint_slice,
            self._namespace,
            label_selector=self._selector,
            timeout_seconds=PATIENCE,
        )
        for event in events:
            if event["object"].endpoints:
                seen["endpoint"] = time.time()
                break

    def read_logs(self, seen: dict[str, float]) -> None:
        """Write into `seen` when the pod's log says that its model is loaded."""
        pods: Any = self._core.list_namespaced_pod(self._namespace, label_selector=self._selector)
        for pod in pods.items:
            for line in self._core.read_namespaced_pod_log(pod.metadata.name, self._namespace).splitlines():
                record = json.loads(line)
                if record["message"] == "ready":
                    seen["loaded"] = datetime.fromisoformat(record["time"]).timestamp()


def tried(pods: Pods, url: str, host: str, pause: float) -> Try:
    """Send one image once there have been no pods for `pause` seconds."""
    end = time.monotonic() + PATIENCE
    while pods.exist():
        if time.monotonic() > end:
            raise click.ClickException(f"there are still pods after {PATIENCE} s")
        time.sleep(0.2)
    time.sleep(pause)
    seen: dict[str, float] = {}
    watching = [
        threading.Thread(target=watcher, args=(seen,), daemon=True)
        for watcher in (pods.watch, pods.watch_endpoints)
    ]
    for watcher in watching:
        watcher.start()
    began = time.time()
    reply = httpx.post(
        url,
        content=IMAGE.read_bytes(),
        headers={"Host": host, "Content-Type": "image/jpeg"},
        timeout=PATIENCE,
    )
    seen["answered"] = time.time()
    for watcher in watching:
        watcher.join(5)
    pods.read_logs(seen)
    return Try(reply.status_code, {step: seen[step] - began for step in STEPS if step in seen})


def summary(tries: Iterable[Try]) -> dict[str, list[float]]:
    """Median, 95th percentile and maximum of the seconds to each step."""
    tries = list(tries)
    return {
        step: [round(float(value), 2) for value in np.quantile(seconds, (0.5, 0.95, 1))]
        for step in STEPS
        if (seconds := [one.moments[step] for one in tries if step in one.moments])
    }


@click.command()
@click.option("--namespace", required=True)
@click.option("--release", default="cats", show_default=True)
@click.option("--host", required=True, help="a host name of the release's route")
@click.option("--tries", default=50, show_default=True)
@click.option("--pause", default=5.0, show_default=True, help="longest pause between two tries, in seconds")
def main(namespace: str, release: str, host: str, tries: int, pause: float) -> None:
    """Measure a release in the cluster of $KUBECONFIG."""
    config.load_kube_config()
    service: Any = client.CoreV1Api().read_namespaced_service("traefik", "gateways")
    gateway = service.spec.cluster_ip
    pods = Pods(namespace, release)
    found = []
    for number in range(tries):
        found.append(tried(pods, f"http://{gateway}/predict", host, random.uniform(0, pause)))
        moments = ", ".join(f"{step} {seconds:.2f}" for step, seconds in found[-1].moments.items())
        click.echo(f"{number + 1}: {found[-1].status}, {moments}")
    click.echo(json.dumps({"lost": sum(one.status != 200 for one in found), **summary(found)}))


if __name__ == "__main__":
    main()
