"""Disruptions: upgrades, drains and lost zones on many nodes, at the wall clock's pace."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.nodes.cluster import GPU, ZONES, Cluster, Pods, by_zone
from benchmarks.nodes.world import START, World, again, spread

DRAINS = 16
"""Runs of `kubectl drain` at the same time; one alone drains its nodes one after the other."""
EVICTION = 20
"""How much faster than by default, 0.1 a second, the node controller taints the nodes of a lost zone. At 1 a
second, a small zone would stay as it is once half of it is lost: the limiter for that state, which lets
nothing through, says that its rate is 1, and so is never exchanged."""
FEW = 4
"""Pods after which what replaces one pod at a time is stopped, and its end calculated."""


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
        first = spread(pods)

        old = {pod.template for pod in pods.serving()}
        began = time.monotonic()
        world.install(namespace, {"replicas": world.pods, **again("2")})
        pods.until(
            lambda: len(pods.serving()) == world.pods and not old & {pod.template for pod in pods.serving()},
            "the upgrade does not end",
        )
        upgraded = time.monotonic()
        samples = pods.since(began)
        second = spread(pods)
        pods.until(lambda: len(pods.all()) == world.pods, "old pods do not end")

        old = {pod.template for pod in pods.serving()}
        one = time.monotonic()
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
        world.install(namespace, {"replicas": world.pods, "strategy": strategy, **again("3")})
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
