"""Shortages: a full pool of GPUs, full nodes and a quota, at the wall clock's pace."""

import json
import time
from typing import Any

from benchmarks.nodes.cluster import GPUS, Pods, by_node, by_zone
from benchmarks.nodes.control_plane import wait
from benchmarks.nodes.world import START, World, again


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
        stuck = {"replicas": most, "gpu": given, "image": {"variant": "cuda"}, **again("2")}
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
        world.install("quota", {**scaling, **again("2")})
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
        "hpa": {"desiredReplicas": scaler["desiredReplicas"]},
        "hpa_conditions": {one["type"]: [one["status"], one["reason"]] for one in scaler["conditions"]},
        "deployment": {
            name: [one["status"], one["reason"], one["message"][:200]] for name, one in conditions.items()
        },
        "upgrade_in_a_full_quota": {"replaced": replaced, "serving": serving},
        "seconds_after_the_quota_is_raised": round(seconds, 1),
    }
