"""A release that a rollout controller upgrades in steps, behind the local cluster's gateway."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from kubernetes import client

from ..shared import until
from .calls import Calls
from .load import Answer, Load
from .release import Release, Values

GROUP, VERSION = "argoproj.io", "v1alpha1"
QUICK: Values = {
    "image": {"variant": "slim"},
    "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "700Mi"}},
    "shutdown": {"graceSeconds": 40},
    "settings": {"deadline": 25, "grpcPort": 8001, "name": "inks"},
    "progressDeadlineSeconds": 60,
    "rollout": {
        "enabled": True,
        "steps": [5, 50],
        "interval": 3,
        "measurements": 3,
        "undecided": 200,  # ten minutes, as by default; `upgrade` waits for longer
        # Two busy cores carry both releases and the cluster.
        "gates": {"latency": 5},
    },
    "monitoring": {"podMonitor": {"enabled": True, "interval": "1s"}},
}
"""A rollout whose two steps last for about ten seconds each."""


@dataclass(frozen=True)
class Place:
    """What releases share: a Gateway, which is the Service `service` of its namespace, and a Prometheus."""

    namespace: str = "gateways"
    gateway: str = "public"
    service: str = "traefik"
    prometheus: str = "http://prometheus.monitoring:9090"

    def values(self, namespace: str) -> Values:
        """Has a release in a namespace answer to host names that no other has."""
        parents = [{"name": self.gateway, "namespace": self.namespace}]
        routes: Values = {
            name: {"enabled": True, "parentRefs": parents, "hostnames": [f"{kind}.{namespace}.example"]}
            for name, kind in (("httpRoute", "http"), ("grpcRoute", "grpc"))
        }
        return {**routes, "rollout": {"prometheus": self.prometheus}}

    def address(self, api: client.ApiClient) -> str:
        """Of the gateway."""
        return _address(self.service, self.namespace, api)

    def sees(self, namespace: str, api: client.ApiClient) -> bool:
        """Whether Prometheus has metrics of a release in a namespace."""
        url = httpx.URL(self.prometheus)
        service, _, of = url.host.partition(".")
        query = {"query": f'pthserve_model_info{{namespace="{namespace}"}}'}
        reply = httpx.get(url.copy_with(host=_address(service, of, api), path="/api/v1/query"), params=query)
        return bool(reply.json()["data"]["result"])


def _address(service: str, namespace: str, api: client.ApiClient) -> str:
    return str(client.CoreV1Api(api).read_namespaced_service(service, namespace).spec.cluster_ip)


_FILTERS = [
    {"type": "ExtensionRef", "extensionRef": {"group": "traefik.io", "kind": "Middleware", "name": "retry"}}
]
RETRY: Values = {
    "extraObjects": [
        {
            "apiVersion": "traefik.io/v1alpha1",
            "kind": "Middleware",
            "metadata": {"name": "retry"},
            "spec": {
                "retry": {
                    "attempts": 4,
                    "initialInterval": "100ms",
                    "status": ["500", "502", "503"],
                    "retryNonIdempotentMethod": True,
                    "maxRequestBodyBytes": 21_000_000,
                }
            },
        }
    ],
    "httpRoute": {"filters": _FILTERS},
    "grpcRoute": {"filters": _FILTERS},
}
"""Has Traefik send a request again that it answers with one of these, as in docs/rollouts.md."""


@dataclass
class Traffic:
    """Constant load over HTTP and gRPC through the gateway, while a block runs.

    gateway: its address. retried: whether clients over gRPC send a call again that the gateway fails.
    """

    gateway: str
    namespace: str
    images: Sequence[Path]
    clients: int = 8
    pause: float = 0.2
    retried: bool = False
    loads: list[Load] = field(init=False)

    def __post_init__(self) -> None:
        common: dict[str, Any] = {"pause": self.pause, "images": self.images}
        half = max(1, self.clients // 2)
        http, grpc = (f"{kind}.{self.namespace}.example" for kind in ("http", "grpc"))
        self.loads = [
            Load(f"http://{self.gateway}:80", half, host=http, **common),
            Calls(f"{self.gateway}:80", half, host=grpc, model="inks", retried=self.retried, **common),
        ]

    def __enter__(self) -> Self:
        for load in self.loads:
            load.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for load in self.loads:
            load.__exit__(kind, error, trace)

    def since(self, began: float) -> list[Answer]:
        """The answers to requests that were sent since then."""
        return [answer for load in self.loads for answer in load.answers if answer.began >= began]

    def versions(self, began: float = 0.0) -> Counter[str]:
        """Good answers since then, by the version of the model that gave them."""
        return Counter(answer.version for answer in self.since(began) if not answer.fault)

    def faults(self, began: float = 0.0) -> Counter[str]:
        return Counter(answer.fault for answer in self.since(began) if answer.fault)

    def flows(self) -> bool:
        """Whether the last answers over each protocol are good."""
        last = [load.answers[-5:] for load in self.loads]
        return all(len(answers) == 5 and not any(a.fault for a in answers) for answers in last)

    def until_more(self, answers: int, seconds: float = 120) -> None:
        """Wait until each protocol has so many more answers."""
        for load in self.loads:
            load.until_more(answers, seconds)

    def __str__(self) -> str:
        http, grpc = self.loads
        return f"HTTP: {http}; gRPC: {grpc}"


@dataclass(frozen=True)
class Outcome:
    """What became of an upgrade.

    promoted: or else it was rolled back. began: of time.monotonic(). seconds: from then on. share: of the
    answers in that time that the new model gave. reason: what the controller says.
    """

    promoted: bool
    began: float
    seconds: float
    share: float
    reason: str


@dataclass(frozen=True)
class Rollout:
    """The Rollout of a release."""

    release: Release

    @property
    def _objects(self) -> client.CustomObjectsApi:
        return client.CustomObjectsApi(self.release.api)

    @property
    def found(self) -> dict[str, Any]:
        got: Any = self._objects.get_namespaced_custom_object(
            GROUP, VERSION, self.release.namespace, "rollouts", self.release.fullname
        )
        return dict(got)

    @property
    def status(self) -> dict[str, Any]:
        """Its status, once it is of what was asked for last; empty before."""
        found = self.found
        status: dict[str, Any] = found.get("status", {})
        return status if status.get("observedGeneration") == str(found["metadata"]["generation"]) else {}

    @property
    def promoted(self) -> bool:
        """Whether all traffic goes to what was asked for last."""
        status = self.status
        return status.get("phase") == "Healthy" and status.get("stableRS") == status.get("currentPodHash")

    @property
    def rolled_back(self) -> bool:
        """Whether the last upgrade was given up, and the old pods have all the traffic."""
        status = self.status
        weights = status.get("canary", {}).get("weights", {})
        return bool(status.get("abort")) and weights.get("canary", {}).get("weight", 0) == 0

    @property
    def settled(self) -> bool:
        """Whether there is no pod of a canary any more."""
        status = self.status
        return bool(status) and status.get("replicas") == self.found["spec"]["replicas"]

    @property
    def paused(self) -> list[str]:
        """Why it waits for a person; empty if it does not."""
        return [pause["reason"] for pause in self.status.get("pauseConditions") or ()]

    @property
    def weight(self) -> int:
        """Percentage of the traffic that the canary gets."""
        weights = self.found.get("status", {}).get("canary", {}).get("weights", {})
        return int(weights.get("canary", {}).get("weight", 0))

    def patch(self, status: dict[str, Any]) -> None:
        """Change its status, as `kubectl argo rollouts promote` and `abort` do."""
        self._objects.patch_namespaced_custom_object_status(
            GROUP, VERSION, self.release.namespace, "rollouts", self.release.fullname, {"status": status}
        )

    def until_promoted(self, seconds: float = 180) -> None:
        until(lambda: self.promoted, seconds=seconds, what="a promotion")

    def upgrade(self, traffic: Traffic, version: str, *values: Values) -> Outcome:
        """Upgrade the release to a model with this version, and wait until the controller has decided."""
        until(lambda: self.settled, seconds=60, what="the end of the last canary's pods")
        before = self.status["stableRS"]
        began = time.monotonic()
        self.release.upgrade(*values, wait=False)
        until(
            lambda: self.status.get("currentPodHash", before) != before, seconds=30, what="a new ReplicaSet"
        )
        until(lambda: self.promoted or self.rolled_back, seconds=700, what=f"a decision, not {self.found}")
        promoted, ended = self.promoted, time.monotonic()
        answers = traffic.versions(began)
        reason = str(self.status.get("message", ""))
        return Outcome(promoted, began, ended - began, answers[version] / max(1, answers.total()), reason)


def serving(folder: Path, model: str) -> Values:
    """Has a release serve `model`, a packed model in a folder of the node."""
    return {
        "settings": {"model": f"/served/{model}"},
        "extraVolumes": [{"name": "served", "hostPath": {"path": str(folder)}}],
        "extraVolumeMounts": [{"name": "served", "mountPath": "/served"}],
    }


def spoiling(base: Values, config_map: str) -> Values:
    """`base`, where Python in the pods imports the sitecustomize.py in a ConfigMap."""
    return base | {
        "extraEnv": [{"name": "PYTHONPATH", "value": "/spoilt"}],
        "extraVolumes": [*base["extraVolumes"], {"name": "spoilt", "configMap": {"name": config_map}}],
        "extraVolumeMounts": [*base["extraVolumeMounts"], {"name": "spoilt", "mountPath": "/spoilt"}],
    }
