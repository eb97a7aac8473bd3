"""Scenarios: what the chart's objects do on many nodes, in the order in which they run."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.nodes import disruptions, shortages
from benchmarks.nodes.world import World

CONTROLLERS = ("--node-eviction-rate", str(0.1 * disruptions.EVICTION))
"""Options of kube-controller-manager; all others are Kubernetes' defaults."""

ALL: Mapping[str, Callable[[World], dict[str, Any]]] = {
    "upgrade": disruptions.upgrade,
    "drain": disruptions.drain,
    "outage": disruptions.outage,
    "removed": disruptions.removed,
    "gpus": shortages.gpus,
    "priority": shortages.priority,
    "quota": shortages.quota,
}
