"""A release of the chart in the cluster, and what is asked of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from kubernetes import client

from ..shared import until

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/pthserve"
Values = dict[str, Any]

SMALL: Values = {
    "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
    "settings": {"deadline": 25},
    "shutdown": {"graceSeconds": 40},
}
"""Several pods fit on a node of two cores, and turn nobody away where they are busy with other things."""
SLIM: Values = {"image": {"variant": "slim"}}


def merged(*values: Values) -> Values:
    """Values laid over each other, as Helm does it: the later ones win."""
    found: Values = {}
    for layer in values:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = merged(found[key], value) if both else value
    return found


@dataclass(frozen=True)
class Release:
    """`helm install NAME charts/pthserve` in a namespace."""

    namespace: str
    api: client.ApiClient
    helm: Callable[..., Any]
    name: str = "cats"

    @property
    def fullname(self) -> str:
        """Name of the Deployment, the Service and what else there is one of."""
        return f"{self.name}-pthserve"

    def upgrade(self, *values: Values, wait: bool = True) -> str:
        """Install or upgrade, and wait until all is ready; what Helm says."""
        waiting = ("--wait", "--timeout=5m") if wait else ()
        done = self.helm(
            *("upgrade", "--install", self.name, CHART, "--namespace", self.namespace, "--values", "-"),
            *waiting,
            input=json.dumps(merged(*values)),
        )
        assert "PodSecurity" not in done.stderr, done.stderr
        return str(done.stdout)

    def uninstall(self) -> None:
        """Remove it, and wait until its last pod has ended."""
        self.helm("uninstall", self.name, "--namespace", self.namespace, "--wait", "--timeout=3m")
        self.until_none(60)

    def until_none(self, seconds: float = 90) -> None:
        """Wait until its last pod has ended."""
        until(lambda: not self._all_pods, seconds=seconds, what=f"the end of {self.name}'s pods")

    @property
    def pods(self) -> list[client.V1Pod]:
        """Its serving pods that nobody has told to go."""
        return [pod for pod in self._all_pods if pod.metadata.deletion_timestamp is None]

    @property
    def _all_pods(self) -> list[client.V1Pod]:
        found: list[client.V1Pod] = (
            client.CoreV1Api(self.api)
            .list_namespaced_pod(
                self.namespace,
                label_selector=f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component=server",
            )
            .items
        )
        return found

    @property
    def ready(self) -> list[client.V1Pod]:
        """Those of its pods that are ready."""
        return [
            pod
            for pod in self.pods
            if any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())
        ]

    def until_ready(self, pods: int, seconds: float = 120) -> list[client.V1Pod]:
        """Its pods, once there are exactly so many and all are ready."""

        def all_ready() -> list[client.V1Pod]:
            ready = self.ready
            return ready if len(ready) == len(self.pods) == pods else []

        found: list[client.V1Pod] = until(
            all_ready, seconds=seconds, what=f"{pods} ready pods of {self.name}"
        )
        return found

    def complaints(self) -> str:
        """What its containers said as they failed, as the pods' status has it."""
        statuses = [
            status
            for pod in self.pods
            for status in (
                *(pod.status.init_container_statuses or ()),
                *(pod.status.container_statuses or ()),
            )
        ]
        ended = [state.terminated for status in statuses for state in (status.state, status.last_state)]
        return "\n".join(end.message or "" for end in ended if end and end.exit_code)

    @property
    def address(self) -> str:
        """Of its Service, once it answers there; from this machine only where it is the local one."""
        service = client.CoreV1Api(self.api).read_namespaced_service(self.fullname, self.namespace)
        url = f"http://{service.spec.cluster_ip}:{service.spec.ports[0].port}"

        def answers() -> bool:
            try:
                return httpx.get(f"{url}/readyz", timeout=1).is_success
            except httpx.TransportError:
                return False  # kube-proxy has not heard of it yet

        until(answers, seconds=60, what=f"an answer at {url}")
        return url

    def endpoints(self) -> list[str]:
        """Addresses of the pods that the Service sends requests to."""
        slices = client.DiscoveryV1Api(self.api).list_namespaced_endpoint_slice(
            self.namespace, label_selector=f"kubernetes.io/service-name={self.fullname}"
        )
        return [
            address
            for found in slices.items
            for endpoint in found.endpoints or ()
            if endpoint.conditions.ready
            for address in endpoint.addresses
        ]
