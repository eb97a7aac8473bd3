"""Traffic: a day of requests, the pods that a plan counts on at each time, and when it predicts a breach.

All times are seconds of the autoscaler: the simulation runs them FACTOR times as fast.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pthserve.sizing.plan import Demand, Plan

FACTOR = 10
"""How much faster than on a wall clock the autoscaler runs. It divides the periods of the chart's
`autoscaling.behavior`, which Kubernetes accepts in whole seconds only."""
STEP = 1.0
"""Seconds between two points of a prediction."""


@dataclass(frozen=True, slots=True)
class Surge:
    """More requests for a while: `multiple` times as many, reached evenly within `rise` seconds."""

    begin: float
    multiple: float
    rise: float
    hold: float

    def factor(self, at: float) -> float:
        """By what the rate is multiplied; the fall is five times as slow as the rise."""
        since = at - self.begin
        if since <= 0:
            share = 0.0
        elif since < self.rise:
            share = since / self.rise
        elif since < self.rise + self.hold:
            share = 1.0
        else:
            share = max(0.0, 1 - (since - self.rise - self.hold) / (5 * self.rise))
        return 1 + (self.multiple - 1) * share


@dataclass(frozen=True, slots=True)
class Day:
    """Requests per second over `length` seconds: few at the beginning and the end, most from 0.4 to 0.6.

    Attributes:
        outage: When a zone is lost, and when its pods are replaced.
        upgrade: When all pods are replaced by those of a new version.
    """

    length: float
    trough: float
    peak: float
    surges: Sequence[Surge]
    upgrade: float
    outage: tuple[float, float]

    def rate(self, at: float) -> float:
        """Requests per second."""
        wave = min(1.0, 1.1 * (1 - math.cos(2 * math.pi * at / self.length)) / 2)
        rate = self.trough + (self.peak - self.trough) * wave
        for surge in self.surges:
            rate *= surge.factor(at)
        return rate

    def hour(self, at: float) -> str:
        """The time of the day, such as 14:30."""
        minutes = round(24 * 60 * at / self.length)
        return f"{minutes // 60:02}:{minutes % 60:02}"

    def is_out(self, at: float) -> bool:
        """Whether a zone is lost."""
        return self.outage[0] <= at < self.outage[1]


def typical(length: float, demand: Demand) -> Day:
    """A day with everything that the plan has to hold, and one surge that is faster than it allows.

    In order: a surge that grows as fast as `demand.growth` allows; an upgrade at the peak; a zone lost at the
    peak; a surge to three times the rate within 30 seconds.
    """
    allowed = Surge(0.25 * length, 1 + 0.9 * demand.growth, 60.0, 300.0)
    sudden = Surge(0.75 * length, 3.0, 30.0, 300.0)
    outage = 0.55 * length
    return Day(length, demand.least, demand.rate, (allowed, sudden), 0.42 * length, (outage, outage + 300.0))


@dataclass(frozen=True, slots=True)
class Expected:
    """What the plan counts on at a time: pods that serve, and whether they are too few."""

    at: float
    pods: int
    breach: bool


def expected(day: Day, demand: Demand, plan: Plan, stabilization: float) -> list[Expected]:
    """The plan's pods at each STEP of the day.

    The autoscaler has at time t what the rate of `plan.growing` seconds before needs, and keeps what was
    needed within `stabilization` seconds before that. Where pods are saturated, it cannot see how many are
    missing: it then wants its number divided by the target, since no saturation exceeds 1.
    """
    ceiling = 1 / plan.targets["saturation"]
    times = [step * STEP for step in range(math.ceil(day.length / STEP))]
    wanted: list[int] = []
    found: list[Expected] = []
    delay, kept = (math.ceil(seconds / STEP) for seconds in (plan.growing, stabilization))
    for step, at in enumerate(times):
        seen = wanted[max(0, step - delay - kept) : max(0, step - delay) + 1]
        pods = max(seen, default=plan.least)
        serving = pods - (math.ceil(pods / demand.zones) if day.is_out(at) else 0)
        rate = day.rate(at)
        breach = rate > serving * plan.boundary
        need = math.ceil(rate / plan.target_rate)
        if breach:
            need = min(need, math.floor(pods * ceiling))
        wanted.append(min(max(need, plan.least), plan.most))
        found.append(Expected(at, pods, breach))
    return found


@dataclass(frozen=True, slots=True)
class Sample:
    """What the simulation had at a time: the rate, and the pods that served."""

    at: float
    rate: float
    serving: int


@dataclass(frozen=True, slots=True)
class Breach:
    """From when to when a pod got more than it can answer within the limit.

    Attributes:
        predicted: The share of that time for which the plan predicted it.
    """

    begin: float
    end: float
    predicted: float


def breaches(samples: Sequence[Sample], boundary: float, plan: Sequence[Expected]) -> list[Breach]:
    """The breaches of the limit by the samples, each with the share of it that was predicted."""
    found: list[Breach] = []
    current: list[tuple[float, float, bool]] = []
    for one, after in itertools.pairwise(samples):
        if one.rate > one.serving * boundary:
            predicted = plan[min(int(one.at / STEP), len(plan) - 1)].breach
            current.append((one.at, after.at, predicted))
        elif current:
            found.append(_joined(current))
            current = []
    if current:
        found.append(_joined(current))
    return found


def _joined(parts: Sequence[tuple[float, float, bool]]) -> Breach:
    total = sum(end - begin for begin, end, _ in parts)
    predicted = sum(end - begin for begin, end, known in parts if known)
    return Breach(parts[0][0], parts[-1][1], predicted / total)
