"""Day: a day of traffic against the real autoscaler, beside what the plan of `pthserve size` expects."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import yaml
from kubernetes import client, config

from benchmarks.nodes.cluster import CHART, Cluster, Pods, by_zone, lifetime, skew
from benchmarks.nodes.metrics import Exporter, Saturation, served
from benchmarks.nodes.traffic import FACTOR, Day, Sample, breaches, expected, typical
from pthserve.sizing.curve import Curve
from pthserve.sizing.plan import SCHEDULING, Demand, plans
from pthserve.sizing.prediction import Predictor
from pthserve.sizing.values import values as values_of

TICK = 0.1
"""Seconds of the wall clock between two samples."""
SYNC = 15.0
"""Seconds between two decisions of the autoscaler, on a wall clock (Kubernetes' default)."""
LOST_ZONE = "c"
CONTROLLERS = (
    *("--horizontal-pod-autoscaler-sync-period", f"{round(1000 * SYNC / FACTOR)}ms"),
    *("--kube-api-qps", str(20 * FACTOR), "--kube-api-burst", str(30 * FACTOR)),
)
"""Kubernetes' defaults of kube-controller-manager, FACTOR times as fast."""


def faster(behavior: dict[str, Any], factor: int) -> dict[str, Any]:
    """`autoscaling.behavior` with all its times divided by `factor`.

    Raises:
        ValueError: A time is not a multiple of `factor`: Kubernetes accepts whole seconds only.
    """
    result = copy.deepcopy(behavior)
    for rules in result.values():
        for holder, name in [
            (rules, "stabilizationWindowSeconds"),
            *((policy, "periodSeconds") for policy in rules["policies"]),
        ]:
            if holder[name] % factor:
                raise ValueError(f"{name} of {holder[name]} s is not a multiple of {factor} s")
            holder[name] //= factor
    return result


def chart_behavior() -> dict[str, Any]:
    """`autoscaling.behavior` of the chart's values.yaml."""
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())["autoscaling"]["behavior"]
    return found


class Zone:
    """A zone whose nodes are lost, as the autoscaler and the Service see it."""

    def __init__(self, cluster: Cluster, namespace: str, pods: Pods) -> None:
        self._core = client.CoreV1Api(config.new_client_from_config(str(cluster.plane.kubeconfig)))
        nodes = cluster.get("nodes", "-l", f"topology.kubernetes.io/zone={LOST_ZONE}")["items"]
        self._nodes: list[str] = [node["metadata"]["name"] for node in nodes]
        self._namespace = namespace
        self._pods = pods

    def lose(self) -> None:
        """Its nodes get no more pods, and its pods are marked not ready, as by the node controller."""
        self._each(self._nodes, partial(self._cordon, True))
        ready = {"type": "Ready", "status": "False", "reason": "NodeNotReady"}
        body = {"status": {"conditions": [ready]}}
        mark = self._core.patch_namespaced_pod_status
        self._each(self._names(), lambda name: mark(name, self._namespace, body))

    def replace(self) -> None:
        """Its pods are evicted, as after the time that they tolerate an unreachable node."""
        delete = self._core.delete_namespaced_pod
        self._each(self._names(), lambda name: delete(name, self._namespace))

    def restore(self) -> None:
        """Its nodes get pods again."""
        self._each(self._nodes, partial(self._cordon, False))

    def _cordon(self, cordoned: bool, node: str) -> None:
        self._core.patch_node(node, {"spec": {"unschedulable": cordoned}})

    def _names(self) -> list[str]:
        return [pod.name for pod in self._pods.all() if pod.zone == LOST_ZONE and not pod.ending]

    @staticmethod
    def _each(names: Sequence[str], action: Callable[[str], object]) -> None:
        def attempt(name: str) -> None:
            with contextlib.suppress(client.ApiException):  # it may have ended by itself
                action(name)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(attempt, names))


class Clock:
    """Seconds of the autoscaler since the day began."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def now(self) -> float:
        return (time.monotonic() - self._began) * FACTOR

    def until(self, at: float) -> None:
        """Wait until this time of the day."""
        time.sleep(max(0.0, (at - self.now()) / FACTOR))


def _samples(
    day: Day, clock: Clock, pods: Pods, exporter: Exporter, saturation: Saturation
) -> Iterator[Sample]:
    """A sample each TICK: the pods that serve share the rate, and show the saturation that follows."""
    while (at := clock.now()) < day.length:
        serving = pods.serving()
        rate = day.rate(at)
        exporter.show([pod.name for pod in serving], saturation(rate / max(1, len(serving))))
        yield Sample(at, rate, len(serving))
        time.sleep(TICK)


def run(cluster: Cluster, curve: Curve, demand: Demand, minutes: float) -> dict[str, Any]:
    """Play the day in so many minutes of the wall clock, and say what held.

    kube-controller-manager must run with CONTROLLERS.
    """
    (plan,) = plans([curve], demand)
    day = typical(60 * minutes * FACTOR, demand)
    behavior = chart_behavior()
    given = values_of(plan, demand, "saturation")
    given["autoscaling"]["behavior"] = faster(behavior, FACTOR)
    start = SCHEDULING + (curve.ready or 0)
    given.update(lifetime(start / FACTOR, 7 / FACTOR))
    namespace, release = cluster.namespace("day"), "cats"
    with Pods(cluster.plane, namespace) as pods, Exporter(namespace) as exporter:
        cluster.install(namespace, release, given)
        pods.until(lambda: len(pods.serving()) >= plan.least, "the first pods do not serve")
        saturation = Saturation(Predictor(curve))
        exporter.show([pod.name for pod in pods.serving()], saturation(day.rate(0) / plan.least))
        with served(cluster, exporter, FACTOR):
            zone = Zone(cluster, namespace, pods)
            clock = Clock()
            begin = time.monotonic()
            samples: list[Sample] = []

            def upgrade() -> float:
                clock.until(day.upgrade)
                cluster.kubectl("rollout", "restart", "deployment", "-n", namespace)
                limit = f"--timeout={60 * minutes:.0f}s"
                cluster.kubectl("rollout", "status", "deployment", "-n", namespace, limit)
                return clock.now()

            with ThreadPoolExecutor(2) as others:
                recording = others.submit(
                    lambda: samples.extend(_samples(day, clock, pods, exporter, saturation))
                )
                upgrading = others.submit(upgrade)
                clock.until(day.outage[0])
                zone.lose()
                lost = clock.now()
                clock.until(day.outage[1])
                zone.replace()
                zone.restore()
            recording.result()
            upgraded = upgrading.result()
            zones = by_zone(pods.serving())
        prediction = expected(day, demand, plan, behavior["scaleDown"]["stabilizationWindowSeconds"])
        found = breaches(samples, plan.boundary, prediction)
        counts = [serving for _, serving, _ in pods.since(begin)]
        cluster.uninstall(namespace, release, pods)
    seconds = sum(one.end - one.begin for one in found)
    return {
        "factor": FACTOR,
        "day_seconds": day.length,
        "demand": asdict(demand),
        "boundary": round(plan.boundary, 2),
        "targets": plan.targets,
        "pods_planned": {"least": plan.least, "planned": plan.pods, "most": plan.most, "lost": plan.lost},
        "pods_served": {"least": min(counts), "most": max(counts)},
        "upgrade_seconds": round(upgraded - day.upgrade, 1),
        "zone_marked_seconds": round(lost - day.outage[0], 1),
        "zones_at_the_end": zones,
        "skew_at_the_end": skew(list(zones.values())),
        "hours": hours(day, samples, prediction, plan.boundary),
        "breach_share": round(seconds / day.length, 5),
        "breaches": [
            {
                "begin": day.hour(one.begin),
                "seconds": round(one.end - one.begin, 1),
                "predicted_share": round(one.predicted, 3),
            }
            for one in found
        ],
        "breach_seconds_not_predicted": round(
            sum((one.end - one.begin) * (1 - one.predicted) for one in found), 1
        ),
        "breach_seconds_predicted_by_the_plan": sum(one.breach for one in prediction),
        "pod_hours": round(sum(sample.serving for sample in samples) / len(samples) * day.length / 3600, 1),
    }


def hours(
    day: Day, samples: Sequence[Sample], prediction: Sequence[Any], boundary: float
) -> list[dict[str, Any]]:
    """What each hour had: the mean rate, pods, the plan's pods, and the load of a pod, 1 at its limit."""
    rows = []
    for hour in range(24):
        begin, end = (day.length * at / 24 for at in (hour, hour + 1))
        here = [one for one in samples if begin <= one.at < end]
        plan = [one.pods for one in prediction if begin <= one.at < end]
        if not here:
            continue
        loads = [one.rate / max(1, one.serving) / boundary for one in here]
        rows.append(
            {
                "hour": hour,
                "rate": round(sum(one.rate for one in here) / len(here)),
                "pods": [min(one.serving for one in here), max(one.serving for one in here)],
                "planned": [min(plan), max(plan)],
                "load": [round(min(loads), 3), round(max(loads), 3)],
                "breach_share": round(sum(load > 1 for load in loads) / len(loads), 4),
            }
        )
    return rows
