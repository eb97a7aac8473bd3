"""Cluster: the simulated nodes, releases of the chart, and the pods of a namespace as a watch shows them."""

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.nodes.control_plane import ROOT, ControlPlane, wait

ZONES = ("a", "b", "c")
GPU = "nvidia.com/gpu"
GPUS = 4
"""GPUs of a node in the GPU pool."""
CHART = ROOT / "charts" / "pthserve"
Values = dict[str, Any]


def nodes(count: int, gpu_share: float) -> list[dict[str, Any]]:
    """`count` nodes, evenly over the zones; `gpu_share` of them have GPUs, and a taint for them."""
    made = []
    for number in range(count):
        zone = ZONES[number % len(ZONES)]
        gpu = number // len(ZONES) < gpu_share * count / len(ZONES)
        name = f"{zone}-{number // len(ZONES):04}"
        resources = {"cpu": "16", "memory": "64Gi", "ephemeral-storage": "200Gi", "pods": "110"}
        if gpu:
            resources[GPU] = str(GPUS)
        made.append(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": name,
                    "labels": {
                        "kubernetes.io/hostname": name,
                        "kubernetes.io/os": "linux",
                        "kubernetes.io/arch": "amd64",
                        "topology.kubernetes.io/zone": zone,
                        "pool": "gpu" if gpu else "cpu",
                    },
                },
                "spec": {"taints": [{"key": GPU, "effect": "NoSchedule"}]} if gpu else {},
                "status": {"capacity": resources, "allocatable": resources},
            }
        )
    return made


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as the API shows it.

    Attributes:
        serving: It is ready and does not end, so a Service sends it requests.
        waiting: Why it is not on a node; empty if it is on one.
    """

    name: str
    node: str
    template: str
    serving: bool
    ending: bool
    waiting: str

    @property
    def zone(self) -> str:
        """The zone of its node; empty if it has none."""
        return self.node.partition("-")[0]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """Read it from JSON."""
        conditions = {one["type"]: one for one in found["status"].get("conditions", ())}
        ending = "deletionTimestamp" in found["metadata"]
        ready = conditions.get("Ready", {}).get("status") == "True"
        return cls(
            found["metadata"]["name"],
            found["spec"].get("nodeName", ""),
            found["metadata"]["labels"].get("pod-template-hash", ""),
            ready and not ending,
            ending,
            conditions.get("PodScheduled", {}).get("message", ""),
        )


class Pods:
    """The pods of a namespace now, and how many served at each time, within a `with` block."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._lock = threading.Lock()
        self._pods: dict[str, Pod] = {}
        self._history: list[tuple[float, int, int]] = []
        self._watch = subprocess.Popen(
            [plane.bin / "kubectl", "get", "--raw", f"/api/v1/namespaces/{namespace}/pods?watch=true"],
            env=plane.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.kill()
        self._watch.wait()
        self._thread.join()

    def _follow(self) -> None:
        assert self._watch.stdout is not None
        for line in self._watch.stdout:
            event = json.loads(line)
            pod = Pod.of(event["object"])
            with self._lock:
                self._pods.pop(pod.name, None)
                if event["type"] != "DELETED":
                    self._pods[pod.name] = pod
                serving = sum(one.serving for one in self._pods.values())
                self._history.append((time.monotonic(), serving, len(self._pods)))

    def all(self) -> list[Pod]:
        """All pods, those that end too."""
        with self._lock:
            return list(self._pods.values())

    def serving(self) -> list[Pod]:
        """Those that get requests."""
        return [pod for pod in self.all() if pod.serving]

    def since(self, begin: float) -> list[tuple[float, int, int]]:
        """Time, number of serving pods and number of pods at each change since `begin`."""
        with self._lock:
            return [sample for sample in self._history if sample[0] >= begin]

    def least(self, begin: float) -> int:
        """The fewest pods that served since `begin`."""
        return min([serving for _, serving, _ in self.since(begin)], default=len(self.serving()))

    def until(self, condition: Callable[[], object], what: str, seconds: float = 900.0) -> float:
        """Seconds until the condition holds; TimeoutError says how many pods serve."""
        try:
            return wait(condition, what, seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {len(self.serving())} of {len(self.all())} pods serve") from None


def lifetime(start: float, end: float) -> Values:
    """Values by which a pod is ready after `start` seconds, and gone `end` seconds after it is deleted."""
    return {
        "podAnnotations": {
            "simulation/start": f"{round(1000 * start)}ms",
            "simulation/end": f"{round(1000 * end)}ms",
        }
    }


def _usable(node: Mapping[str, Any]) -> bool:
    """Whether a node is ready, and the node controller has no taint on it that says otherwise."""
    conditions = {one["type"]: one["status"] for one in node["status"].get("conditions", ())}
    keys = [taint["key"] for taint in node["spec"].get("taints", ())]
    return conditions.get("Ready") == "True" and not [
        key for key in keys if key.startswith("node.kubernetes.io/")
    ]


def skew(counts: Sequence[int]) -> int:
    """The difference between the most and the fewest."""
    return max(counts) - min(counts)


def by_zone(pods: Sequence[Pod]) -> dict[str, int]:
    """How many of the pods are in each zone."""
    found = Counter(pod.zone for pod in pods)
    return {zone: found[zone] for zone in ZONES}


def by_node(pods: Sequence[Pod]) -> Counter[str]:
    """How many of the pods are on each node that has any."""
    return Counter(pod.node for pod in pods)


class Cluster:
    """What a person does with kubectl and helm."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def kubectl(self, *arguments: str, given: Any = None, check: bool = True) -> str:
        """What kubectl prints; `given` is an object, or text, for `-f -`."""
        text = given if given is None or isinstance(given, str) else json.dumps(given)
        return self.plane.run("kubectl", *arguments, given=text, check=check)

    def get(self, kind: str, *arguments: str) -> Any:
        """Objects as JSON."""
        return json.loads(self.kubectl("get", kind, "-o", "json", *arguments))

    def add_nodes(self, objects: list[dict[str, Any]]) -> None:
        """Create nodes."""
        self.kubectl("create", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": objects})

    def until_ready(self, count: int) -> None:
        """Wait until so many nodes are ready, and get pods."""
        wait(
            lambda: sum(map(_usable, self.get("nodes")["items"])) == count,
            f"{count} nodes are not ready",
            every=2.0,
        )

    def namespace(self, name: str) -> str:
        """Create a namespace."""
        self.kubectl("create", "namespace", name)
        wait(
            lambda: self.plane.works("kubectl", "get", "serviceaccount", "default", "-n", name),
            f"the namespace {name} has no account",
        )
        return name

    def install(self, namespace: str, name: str, values: Values) -> None:
        """Install the chart, or upgrade the release to these values."""
        command = ("helm", "upgrade", "--install", name, CHART, "--namespace", namespace, "--values", "-")
        self.plane.run(*command, given=json.dumps(values))

    def uninstall(self, namespace: str, name: str, pods: Pods) -> None:
        """Remove a release, and wait until its pods are gone."""
        self.plane.run("helm", "uninstall", name, "--namespace", namespace)
        pods.until(lambda: not pods.all(), f"{name} is not gone")
