"""Plan: how many pods keep a latency at a rate, with a node lost and while the load grows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pthserve.errors import PthserveError
from pthserve.settings import Settings
from pthserve.sizing.curve import Curve
from pthserve.sizing.prediction import Load, Predictor

Metric = Literal["cpu", "saturation", "inflight"]
"""What the chart's autoscaler may follow: `autoscaling.metric`."""

TOLERANCE = 0.1
"""The autoscaler leaves the number of pods as it is while the metric is within this share of its target
(Kubernetes, `--horizontal-pod-autoscaler-tolerance`)."""
REACTION = 45.0
"""Seconds until the autoscaler wants another pod: it looks every 15 seconds (Kubernetes,
`--horizontal-pod-autoscaler-sync-period`), at the mean of 30 seconds (k8s/monitoring/adapter.yaml)."""
SCHEDULING = 10.0
"""Seconds from a wanted pod to the start of its process, where the image is on the node."""
READY = 30.0
"""Seconds from the start of the process until it is ready, where that is not measured."""
LARGEST_TARGET = 0.9
"""Of a CPU utilisation or a saturation: above, the metric does not rise with the load any more."""
MIB = 2**20
BODIES = 16
"""Bodies that a pod holds at the same time; see docs/operations.md, "How much memory a pod needs"."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is wanted. Rates are requests per second of the whole release, each with one image.

    Attributes:
        rate: The planned rate.
        p99: Maximum 99th percentile of latency in seconds.
        least: The lowest rate: the autoscaler never removes pods that it needs.
        most: The highest rate: the autoscaler may add the pods that it needs.
        growth: By which share of itself the rate may grow in a minute.
        start: Seconds from a wanted pod to a ready one; None if they are to be derived from the curve.
        nodes: Number of nodes that the pods are spread over; with one, none may be lost.
        zones: Number of zones that they are spread over; with more than one, a zone may be lost.
        whole_cores: Whether the pods are to have cores of their own, which Kubernetes' CPU manager gives to
            pods whose requests are their limits.
    """

    rate: float
    p99: float
    least: float
    most: float
    growth: float = 0.5
    start: float | None = None
    nodes: int = 3
    zones: int = 1
    whole_cores: bool = False

    def lost(self, pods: int) -> int:
        """Return how many of so many pods, evenly spread, are gone with a node or a zone."""
        groups = self.zones if self.zones > 1 else self.nodes
        return math.ceil(pods / groups) if groups > 1 else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Pods of one size for a demand.

    Attributes:
        boundary: Requests per second and pod at which the 99th percentile reaches the limit.
        target_rate: Requests per second and pod at which the autoscaler adds pods at the latest.
        pods: Number of pods at the planned rate.
        least, most: Number of pods at the lowest and the highest rate.
        lost: Number of pods that may be gone at the planned rate.
        growing: Seconds that the load grows until a new pod is ready.
        targets: Of the autoscaler, by metric: percent of the CPU request, saturation, requests in flight.
        planned, after_loss: What a pod is predicted to do at the planned rate, and if `lost` pods are gone.
        loads: What a pod is predicted to do at rates up to the boundary.
        memory: Request and limit in bytes; None if the memory was not measured.
    """

    curve: Curve
    boundary: float
    target_rate: float
    pods: int
    least: int
    most: int
    lost: int
    growing: float
    targets: dict[Metric, float]
    planned: Load
    after_loss: Load
    loads: Sequence[Load]
    memory: tuple[int, int] | None

    @property
    def cores(self) -> int:
        """Cores of all pods at the planned rate."""
        return self.pods * self.curve.cores

    def cost(self, price: float, per: Literal["core", "pod"], rate: float) -> float:
        """Return the cost of a million images at `rate` images per second, from the price for an hour."""
        hourly = price * (self.cores if per == "core" else self.pods)
        return hourly / (3600 * rate) * 1e6


def best(plans: Sequence[Plan]) -> Plan:
    """Return the plan with the fewest cores in total; of equal ones, that with the smaller pods."""
    return min(plans, key=lambda plan: (plan.cores, plan.curve.cores))


def plans(curves: Sequence[Curve], demand: Demand) -> Sequence[Plan]:
    """Return a plan for each of the curves that can keep the latency.

    Raises:
        PthserveError: None can, or the memory for `whole_cores` is not known.
    """
    if demand.whole_cores and any(curve.memory is None for curve in curves):
        raise PthserveError(
            "--whole-cores requests as much memory as the limit, and the file does not say how much memory "
            "the service takes; measure with `pthserve size MODEL`, or leave out --whole-cores"
        )
    found = [plan for curve in curves if (plan := _plan(Predictor(curve), demand)) is not None]
    if not found:
        lowest = min(curves, key=lambda curve: curve.lone.latency["p99"])
        raise PthserveError(
            f"no number of pods keeps a 99th percentile of {1000 * demand.p99:g} ms: that of a lone client "
            f"is {1000 * lowest.lone.latency['p99']:.1f} ms on {lowest.cores} cores; allow more, give a pod "
            "more cores, or choose a faster precision"
        )
    return found


def _plan(predictor: Predictor, demand: Demand) -> Plan | None:
    curve = predictor.curve
    boundary = predictor.boundary(demand.p99)
    if not boundary:
        return None
    start = demand.start if demand.start is not None else SCHEDULING + (curve.ready or READY)
    growing = REACTION + start
    share = 1 / (1 + demand.growth * growing / 60)

    def pods_for(rate: float) -> int:
        pods = max(1, math.ceil(rate / (share * boundary)))
        while (pods - demand.lost(pods)) * boundary < rate:
            pods += 1
        return pods

    share = min(share, _left(demand, pods_for(demand.rate)))
    target_rate = share * boundary
    pods = pods_for(demand.rate)
    lost = demand.lost(pods)
    return Plan(
        curve=curve,
        boundary=boundary,
        target_rate=target_rate,
        pods=pods,
        least=pods_for(demand.least),
        most=pods_for(demand.most),
        lost=lost,
        growing=growing,
        targets=_targets(predictor.at(target_rate)),
        planned=predictor.at(demand.rate / pods),
        after_loss=predictor.at(demand.rate / (pods - lost)),
        loads=[predictor.at(share * boundary) for share in (0.2, 0.4, 0.6, 0.8, 1.0)],
        memory=None if curve.memory is None else memory_of(curve, whole_cores=demand.whole_cores),
    )


def _left(demand: Demand, pods: int) -> float:
    """Return the least share of the pods that a loss leaves, of so many pods and more.

    An autoscaler that leaves a pod more load than this share of its limit has too few pods after a loss.
    """
    groups = max(demand.zones, demand.nodes)
    return min(1 - demand.lost(count) / count for count in range(pods, pods + groups))


def _targets(load: Load) -> dict[Metric, float]:
    """Return the autoscaler's targets that make it add pods at `load`, in spite of its tolerance."""
    share = 1 + TOLERANCE
    return {
        "cpu": max(1, math.floor(100 * min(LARGEST_TARGET, load.cpu / share))),
        "saturation": max(0.01, math.floor(100 * min(LARGEST_TARGET, load.saturation / share)) / 100),
        "inflight": max(0.1, math.floor(10 * load.inflight / share) / 10),
    }


def memory_of(curve: Curve, *, whole_cores: bool = False) -> tuple[int, int]:
    """Return the memory of a pod in bytes: what to request, and the limit.

    The request is a fifth more than the service had under load, or the limit for `whole_cores`. The limit is
    the sum of what the settings allow, at their defaults; see docs/operations.md, "How much memory a pod
    needs".
    """
    assert curve.memory is not None
    settings = {name: field.default for name, field in Settings.model_fields.items()}
    bounds: Iterator[int] = iter(
        (
            curve.memory,
            100 * MIB,  # a second model while it is reloaded
            (BODIES + curve.cores + 1) * settings["max_body"],
            settings["decode_memory"],
            settings["max_inflight"] * (curve.pixels or 150_000),
        )
    )
    limit = _rounded(sum(bounds), 256 * MIB)
    return limit if whole_cores else _rounded(1.2 * curve.memory, 64 * MIB), limit


def _rounded(size: float, unit: int) -> int:
    return math.ceil(size / unit) * unit
