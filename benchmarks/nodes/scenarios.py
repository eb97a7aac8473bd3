"""Scenarios: what the chart's objects do on many nodes, at the wall clock's pace."""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.nodes.cluster import GPU, GPUS, ZONES, Cluster, Pods, Values, by_node, by_zone, lifetime, skew
from benchmarks.nodes.control_plane import wait
from benchmarks.process import Process

START = 12.0
"""Seconds from a pod's node until it is ready: a container, its image on the node, and a packed model."""
END = 8.0
"""Seconds that a deleted pod needs: the chart's preStopSeconds and drainSeconds, and its last request."""
DRAINS = 16
"""Runs of `kubectl drain` at the same time; one alone drains its nodes one after the other."""
EVICTION = 20
"""How much faster than by default, 0.1 a second, the node controller taints the nodes of a lost zone. At 1 a
second, a small zone would stay as it is once half of it is lost: the limiter for that state, which lets
nothing through, says that its rate is 1, and so is never exchanged."""
CONTROLLERS = ("--node-eviction-rate", str(0.1 * EVICTION))
"""Options of kube-controller-manager; all others are Kubernetes' defaults."""
FEW = 4
"""Pods after which what replaces one pod at a time is stopped, and its end calculated."""


@dataclass(frozen=True, slots=True)
class World:
    """The cluster, kwok in each zone, and how many nodes and pods there are."""

    cluster: Cluster
    kubelets: dict[str, Process]
    stages: Path
    nodes: int
    pods: int
    running: contextlib.ExitStack

    @contextlib.contextmanager
    def release(self, namespace: str, values: Mapping[str, Any], ready: int) -> Iterator[Pods]:
        """A release of the chart in a namespace of its own within the block, once so many pods serve."""
        self.cluster.namespace(namespace)
        with Pods(self.cluster.plane, namespace) as pods:
            self.install(namespace, values)
            pods.until(lambda: len(pods.serving()) == ready, f"{ready} pods of {namespace} do not serve")
            yield pods
            self.cluster.uninstall(namespace, "cats", pods)

    def install(self, namespace: str, values: Mapping[str, Any]) -> None:
        """Install or upgrade the release."""
        self.cluster.install(namespace, "cats", {**_small(), **values})


def _small() -> Values:
    """One core a pod, and the times of a packed model."""
    return {
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
        **lifetime(START, END),
    }


def _again(name: str) -> Values:
    """Values by which all pods are replaced."""
    values = lifetime(START, END)
    values["podAnnotations"]["simulation/version"] = name
    return values


def _spread(pods: Pods) -> dict[str, Any]:
    """How the pods that serve are spread over zones and nodes."""
    zones = by_zone(pods.serving())
    return {
        "zones": zones,
        "zone_skew": skew(list(zones.values())),
        "most_on_a_node": max(by_node(pods.serving()).values()),
    }


def upgrade(world: World) -> dict[str, Any]:
    """Install a release, and replace all its pods: with the chart's defaults, and one by one."""
    namespace = "upgrade"
    world.cluster.namespace(namespace)
    with Pods(world.cluster.plane, namespace) as pods:
        begin = time.monotonic()
        world.install(namespace, {"replicas": world.pods})
        installed = time.monotonic()
        bound = pods.until(lambda: len([pod for pod in pods.all() if pod.node]) == world.pods, "not bound")
        pods.until(lambda: len(pods.serving()) == world.pods, "not ready")
        ready = time.monotonic()
        first = _spread(pods)

        old = {pod.template for pod in pods.serving()}
        began = time.monotonic()
        world.install(namespace, {"replicas": world.pods, **_again("2")})
        pods.until(
            lambda: len(pods.serving()) == world.pods and not old & {pod.template for pod in pods.serving()},
            "the upgrade does not end",
        )
        upgraded = time.monotonic()
        samples = pods.since(began)
        second = _spread(pods)
        pods.until(lambda: len(pods.all()) == world.pods, "old pods do not end")

        old = {pod.template for pod in pods.serving()}
        one = time.monotonic()
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
        world.install(namespace, {"replicas": world.pods, "strategy": strategy, **_again("3")})
        pods.until(
            lambda: len([pod for pod in pods.serving() if pod.template not in old]) >= FEW, "no upgrade"
        )
        pace = (time.monotonic() - one) / FEW
        world.cluster.uninstall(namespace, "cats", pods)
    return {
        "pods": world.pods,
        "pod_start_seconds": START,
        "install": {
            "helm_seconds": round(installed - begin, 1),
            "bound_seconds": round(installed - begin + bound, 1),
            "ready_seconds": round(ready - begin, 1),
            **first,
        },
        "upgrade": {
            "seconds": round(upgraded - began, 1),
            "least_serving": min(serving for _, serving, _ in samples),
            "most_pods": max(count for _, _, count in samples),
            **second,
        },
        "upgrade_with_max_surge_1": {
            "seconds_per_pod": round(pace, 2),
            "seconds_calculated": round(pace * world.pods),
        },
    }


def drain(world: World) -> dict[str, Any]:
    """Drain all nodes of a zone, with the chart's disruption budget, and with that of one pod."""
    zone = ZONES[1]
    with world.release("drain", {"replicas": world.pods}, world.pods) as pods:
        there = by_zone(pods.serving())[zone]
        nodes = sorted({pod.node for pod in pods.serving() if pod.zone == zone})
        world.cluster.kubectl("cordon", "-l", f"topology.kubernetes.io/zone={zone}")
        slow = {"replicas": world.pods, "podDisruptionBudget": {"maxUnavailable": 1}}
        world.install("drain", slow)
        begin = time.monotonic()
        with _draining(world.cluster, nodes):
            pods.until(lambda: by_zone(pods.serving())[zone] <= there - FEW, "no pod is evicted")
            pace = (time.monotonic() - begin) / FEW
        left = by_zone(pods.serving())[zone]
        pods.until(lambda: len(pods.serving()) == world.pods, "evicted pods are not replaced")

        world.install("drain", {"replicas": world.pods})
        began = time.monotonic()
        with _draining(world.cluster, nodes) as runs:
            pods.until(lambda: not [pod for pod in pods.all() if pod.zone == zone], "the zone is not empty")
            seconds = time.monotonic() - began
            pods.until(lambda: all(run.poll() is not None for run in runs), "kubectl drain does not end")
            failed = [run.returncode for run in runs if run.returncode]
        least = pods.least(began)
        pods.until(lambda: len(pods.serving()) == world.pods, "evicted pods are not replaced")
        world.cluster.kubectl("uncordon", "-l", f"topology.kubernetes.io/zone={zone}")
    return {
        "pods": world.pods,
        "nodes_in_zone": world.nodes // len(ZONES),
        "pods_in_zone": there,
        "nodes_with_pods": len(nodes),
        "drains_at_once": DRAINS,
        "seconds": round(seconds, 1),
        "pods_left_for_it": left,
        "least_serving": least,
        "failed_drains": len(failed),
        "with_a_budget_of_1": {
            "seconds_per_pod": round(pace, 2),
            "seconds_calculated": round(pace * there),
        },
    }


@contextlib.contextmanager
def _draining(cluster: Cluster, nodes: list[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """DRAINS runs of kubectl drain, which end with the block."""
    command = [str(cluster.plane.bin / "kubectl"), "drain", "--ignore-daemonsets", "--delete-emptydir-data"]
    with (cluster.plane.folder / "drain.log").open("ab") as log:
        runs = [
            subprocess.Popen(
                [*command, *nodes[at::DRAINS]], env=cluster.plane.environment, stdout=log, stderr=log
            )
            for at in range(min(DRAINS, len(nodes)))
        ]
        try:
            yield runs
        finally:
            for run in runs:
                run.kill()
                run.wait()


def outage(world: World) -> dict[str, Any]:
    """All nodes of a zone stop at once, and are back after their pods are replaced."""
    zone = ZONES[2]
    with world.release("outage", {"replicas": world.pods}, world.pods) as pods:
        container = world.cluster.get("pods", "-n", "outage")["items"][0]
        tolerated = {
            one["key"].rpartition("/")[2]: one["tolerationSeconds"]
            for one in container["spec"]["tolerations"]
            if "tolerationSeconds" in one
        }
        there = by_zone(pods.serving())[zone]
        began = time.monotonic()
        world.kubelets[zone].__exit__(None, None, None)
        pods.until(lambda: len(pods.serving()) < world.pods, "nobody notices")
        noticed = time.monotonic() - began
        seen: dict[str, float] = {}

        def both() -> bool:
            if not by_zone(pods.serving())[zone]:
                seen.setdefault("unready", time.monotonic() - began)
            if any(pod.ending for pod in pods.all()):
                seen.setdefault("evicted", time.monotonic() - began)
            return len(seen) == 2

        pods.until(both, "pods still count as ready, or none is evicted", 1800)
        pods.until(lambda: len(pods.serving()) == world.pods, "lost pods are not replaced", 1800)
        replaced = time.monotonic() - began
        left = len([pod for pod in pods.all() if pod.zone == zone])
        world.kubelets[zone] = world.running.enter_context(world.cluster.plane.kubelets(zone, world.stages))
        back = pods.until(lambda: len(pods.all()) == world.pods, "the zone does not come back")
        world.cluster.until_ready(world.nodes)
    evicting = max(0.0, replaced - seen["evicted"] - START)
    return {
        "pods": world.pods,
        "pods_in_zone": there,
        "tolerated_seconds": tolerated,
        "first_pod_not_ready_seconds": round(noticed, 1),
        "all_pods_not_ready_seconds": round(seen["unready"], 1),
        "first_pod_evicted_seconds": round(seen["evicted"], 1),
        "eviction_rate_times": EVICTION,
        "replaced_seconds_measured": round(replaced, 1),
        "replaced_seconds_by_default": round(seen["evicted"] + EVICTION * evicting + START),
        "pods_left_ending": left,
        "back_seconds": round(back, 1),
    }


def removed(world: World) -> dict[str, Any]:
    """The nodes of a zone are removed from the cluster, as a cloud does with machines that are gone."""
    zone = ZONES[2]
    selector = f"topology.kubernetes.io/zone={zone}"
    with world.release("removed", {"replicas": world.pods}, world.pods) as pods:
        objects = world.cluster.get("nodes", "-l", selector)["items"]
        there = by_zone(pods.serving())[zone]
        began = time.monotonic()
        world.cluster.kubectl("delete", "nodes", "-l", selector, "--wait=false")
        gone = time.monotonic() - began
        pods.until(lambda: not [pod for pod in pods.all() if pod.zone == zone], "its pods stay")
        cleared = time.monotonic() - began
        pods.until(lambda: len(pods.serving()) == world.pods, "its pods are not replaced")
        replaced = time.monotonic() - began
        for node in objects:
            node["metadata"] = {key: node["metadata"][key] for key in ("name", "labels")}
            node["spec"] = {
                "taints": [taint for taint in node["spec"].get("taints", ()) if taint["key"] == GPU]
            }
        world.cluster.add_nodes(objects)
        world.cluster.until_ready(world.nodes)
    return {
        "pods_in_zone": there,
        "delete_seconds": round(gone, 1),
        "cleared_seconds": round(cleared, 1),
        "replaced_seconds": round(replaced, 1),
    }


def gpus(world: World) -> dict[str, Any]:
    """Releases with and without GPUs, and more pods than GPUs."""
    pool = world.cluster.get("nodes", "-l", "pool=gpu")["items"]
    most = GPUS * len(pool)
    given = {"enabled": True, "nodeSelector": {"pool": "gpu"}}
    names = {node["metadata"]["name"] for node in pool}
    with (
        world.release("cpu", {"replicas": world.pods // 2}, world.pods // 2) as plain,
        world.release(
            "gpu", {"replicas": most // 2, "gpu": given, "image": {"variant": "cuda"}}, most // 2
        ) as pods,
    ):
        wrong = [pod.name for pod in pods.serving() if pod.node not in names]
        strays = [pod.name for pod in plain.serving() if pod.node in names]
        zones = by_zone(pods.serving())
        on_a_node = max(by_node(pods.serving()).values())
        values = {"replicas": most + 10, "gpu": given, "image": {"variant": "cuda"}}
        world.install("gpu", values)
        pods.until(lambda: len(pods.serving()) == most, "the pool does not fill")
        pods.until(lambda: len([pod for pod in pods.all() if pod.waiting]) == 10, "no pod waits")
        reason = next(pod.waiting for pod in pods.all() if pod.waiting)
        full = max(by_node(pods.serving()).values())
        values["replicas"] = most
        world.install("gpu", values)
        pods.until(lambda: len(pods.all()) == most, "the pods that wait do not end")
        stuck = {"replicas": most, "gpu": given, "image": {"variant": "cuda"}, **_again("2")}
        old = {pod.template for pod in pods.serving()}
        world.install("gpu", stuck)
        time.sleep(3 * START)
        replaced = len([pod for pod in pods.serving() if pod.template not in old])
        least = len(pods.serving())
        began = time.monotonic()
        stuck["strategy"] = {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": "10%", "maxSurge": 0},
        }
        world.install("gpu", stuck)
        pods.until(
            lambda: len(pods.serving()) == most and not old & {pod.template for pod in pods.serving()},
            "the upgrade of a full pool does not end",
        )
        seconds = time.monotonic() - began
        fewest = pods.least(began)
    return {
        "gpu_nodes": len(pool),
        "gpus": most,
        "pods_outside_the_pool": len(wrong),
        "pods_without_gpu_in_the_pool": len(strays),
        "zones": zones,
        "most_on_a_node": on_a_node,
        "more_pods_than_gpus": {"serving": most, "most_on_a_node": full, "why_10_wait": reason},
        "upgrade_of_a_full_pool": {"replaced": replaced, "serving": least},
        "upgrade_without_surge": {"seconds": round(seconds, 1), "least_serving": fewest},
    }


def priority(world: World) -> dict[str, Any]:
    """Some nodes are full of pods of lower priority; a release with and without a priority class comes."""
    cluster = world.cluster
    count = max(6, world.nodes // 33)
    names = [node["metadata"]["name"] for node in cluster.get("nodes", "-l", "pool=cpu")["items"]]
    chosen = sorted(names, key=lambda name: name.partition("-")[2])[:count]  # from all zones in turn
    cluster.kubectl("label", "nodes", *chosen, "pool=shared", "--overwrite")
    for name, value in (("serving", 1000), ("filler", -10)):
        kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
        cluster.kubectl("create", "-f", "-", given={**kind, "metadata": {"name": name}, "value": value})
    cluster.namespace("filler")
    labels = {"app": "filler"}
    filler = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "filler", "namespace": "filler"},
        "spec": {
            "replicas": 8 * count,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "priorityClassName": "filler",
                    "nodeSelector": {"pool": "shared"},
                    "containers": [
                        {"name": "filler", "image": "filler", "resources": {"requests": {"cpu": "2"}}}
                    ],
                },
            },
        },
    }
    wanted = 4 * count
    with Pods(cluster.plane, "filler") as fillers:
        cluster.kubectl("create", "-f", "-", given=filler)
        fillers.until(lambda: len(fillers.serving()) == 8 * count, "the nodes are not full")
        cluster.namespace("priority")
        with Pods(cluster.plane, "priority") as pods:
            values = {"replicas": wanted, "nodeSelector": {"pool": "shared"}, "priorityClassName": "serving"}
            began = time.monotonic()
            world.install("priority", values)
            pods.until(lambda: len(pods.serving()) == wanted, "nothing is preempted")
            seconds = time.monotonic() - began
            preempted = 8 * count - len(fillers.serving())
            per_node = max(by_node(pods.serving()).values())
            zones = by_zone(pods.serving())
            cluster.uninstall("priority", "cats", pods)
        fillers.until(lambda: len(fillers.serving()) == 8 * count, "the nodes are not full again")
        cluster.kubectl("delete", "deployment", "filler", "-n", "filler")
        fillers.until(lambda: not fillers.all(), "the fillers do not end")
    cluster.kubectl("label", "nodes", *chosen, "pool=cpu", "--overwrite")
    return {
        "shared_nodes": count,
        "pods": wanted,
        "cores_each": 1,
        "seconds": round(seconds, 1),
        "preempted": preempted,
        "preempted_cores_each": 2,
        "needed": -(-wanted // 2),
        "most_on_a_node": per_node,
        "zones": zones,
    }


def quota(world: World) -> dict[str, Any]:
    """A quota of fewer cores than the autoscaler's minimum needs, and an upgrade while it is used up."""
    cluster = world.cluster
    cluster.namespace("quota")
    allowed, wanted = 20, 30
    limits = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "cores", "namespace": "quota"},
    }
    cluster.kubectl("create", "-f", "-", given={**limits, "spec": {"hard": {"requests.cpu": str(allowed)}}})
    with Pods(cluster.plane, "quota") as pods:
        scaling = {"autoscaling": {"enabled": True, "minReplicas": wanted, "maxReplicas": 2 * wanted}}
        world.install("quota", scaling)
        pods.until(lambda: len(pods.serving()) == allowed, "the quota is not used")
        wait(
            lambda: (
                cluster.get("hpa", "-n", "quota")["items"][0].get("status", {}).get("desiredReplicas")
                == wanted
            ),
            "the autoscaler does not want its minimum",
        )
        scaler = cluster.get("hpa", "-n", "quota")["items"][0]["status"]
        (deployment,) = cluster.get("deployments", "-n", "quota")["items"]
        conditions = {one["type"]: one for one in deployment["status"]["conditions"]}
        old = {pod.template for pod in pods.serving()}
        world.install("quota", {**scaling, **_again("2")})
        time.sleep(3 * START)
        replaced = len([pod for pod in pods.serving() if pod.template not in old])
        serving = len(pods.serving())
        cluster.kubectl(
            "patch", "quota", "cores", "-n", "quota", "-p",
            json.dumps({"spec": {"hard": {"requests.cpu": str(2 * wanted)}}}),
        )  # fmt: skip
        began = time.monotonic()
        pods.until(
            lambda: len(pods.serving()) == wanted and not old & {pod.template for pod in pods.serving()},
            "pods do not come after the quota is raised",
        )
        seconds = time.monotonic() - began
        cluster.uninstall("quota", "cats", pods)
    return {
        "allowed": allowed,
        "wanted": wanted,
        "hpa": {name: scaler.get(name) for name in ("currentReplicas", "desiredReplicas")},
        "hpa_conditions": {one["type"]: [one["status"], one["reason"]] for one in scaler["conditions"]},
        "deployment": {
            name: [one["status"], one["reason"], one["message"][:200]] for name, one in conditions.items()
        },
        "upgrade_in_a_full_quota": {"replaced": replaced, "serving": serving},
        "seconds_after_the_quota_is_raised": round(seconds, 1),
    }


ALL: Mapping[str, Callable[[World], dict[str, Any]]] = {
    "upgrade": upgrade,
    "drain": drain,
    "outage": outage,
    "removed": removed,
    "gpus": gpus,
    "priority": priority,
    "quota": quota,
}
