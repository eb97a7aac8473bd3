"""World: the cluster that the scenarios share, and the releases in it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.nodes.cluster import Cluster, Pods, Values, by_node, by_zone, lifetime, skew
from benchmarks.process import Process

START = 12.0
"""Seconds from a pod's node until it is ready: a container, its image on the node, and a packed model."""
END = 8.0
"""Seconds that a deleted pod needs: the chart's preStopSeconds and drainSeconds, and its last request."""


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
        self.cluster.install(namespace, "cats", {**small(), **values})


def small() -> Values:
    """One core a pod, and the times of a packed model."""
    return {
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
        **lifetime(START, END),
    }


def again(name: str) -> Values:
    """Values by which all pods are replaced."""
    values = lifetime(START, END)
    values["podAnnotations"]["simulation/version"] = name
    return values


def spread(pods: Pods) -> dict[str, Any]:
    """How the pods that serve are spread over zones and nodes."""
    zones = by_zone(pods.serving())
    return {
        "zones": zones,
        "zone_skew": skew(list(zones.values())),
        "most_on_a_node": max(by_node(pods.serving()).values()),
    }
