"""Prediction: the latency of a pod at a load, and the load at which its latency exceeds a limit."""

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pthserve.bench.load import poisson
from pthserve.sizing.curve import Curve, Loop, OpenLoop
from pthserve.sizing.queueing import Outcome, Pod, closed_loop, open_loop, replayed

SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
"""Quantiles of a loop's latencies, by their names."""
STEPS = 50
"""Quantiles of the work of a request that the simulation draws from."""
PRECISION = 0.005
"""Relative error of a boundary."""
MOST_SLOWDOWN = 2.0
"""Factor, and its inverse, beyond which a measured open loop does not correct the simulation."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a pod is predicted to do at a rate.

    Attributes:
        rate: Requests per second, each with one image.
        p50: Median latency in seconds.
        p99: 99th percentile in seconds.
        saturation: `pthserve_saturation`.
        inflight: `pthserve_inflight_requests`.
        cpu: Share of the cores in use.
    """

    rate: float
    p50: float
    p99: float
    saturation: float
    inflight: float
    cpu: float


class Predictor:
    """Predicts what a pod with the measured `curve` does. A rate that was simulated is kept.

    The simulation is corrected by what the open loops of the curve measured; see `Slowdown`.
    """

    def __init__(self, curve: Curve) -> None:
        self.curve = curve
        self.pod = fitted(curve)
        self.slowdown = Slowdown.of(self.pod, curve.open_loops)
        self._known: dict[float, Load] = {}

    def at(self, rate: float) -> Load:
        """Return the prediction for `rate` requests per second.

        Raises:
            ValueError: The rate is not above 0 and below the capacity of the curve: no latency is stationary.
        """
        if not 0 < rate < self.curve.capacity:
            raise ValueError(f"{rate:g} requests per second are not between 0 and {self.curve.capacity:g}")
        if rate not in self._known:
            factor = self.slowdown.at(rate)
            self._known[rate] = _load(rate, open_loop(self.pod, factor * rate).slower(factor))
        return self._known[rate]

    def boundary(self, p99: float) -> float:
        """Return the highest rate with a 99th percentile of at most `p99` seconds; 0 if none has.

        It is below the capacity, within PRECISION of it if the limit is as high as that.
        """
        low, high = 0.0, self.curve.capacity
        while high - low > PRECISION * high:
            rate = (low + high) / 2
            if self.at(rate).p99 <= p99:
                low = rate
            else:
                high = rate
            if high < PRECISION * self.curve.capacity:
                return 0.0
        return low


@dataclass(frozen=True, slots=True)
class Slowdown:
    """How many times as long as in the simulation all work took, at the rates of open loops.

    Between two rates, the factor is interpolated; beyond the first and the last, it is that of the nearest.
    At a low rate it is not 1, although the simulation begins with the latencies of a single client: those
    requests follow each other, and one that finds idle cores and cold caches takes longer.

    Attributes:
        rates: Requests per second.
        factors: The factor at each of them.
    """

    rates: Sequence[float] = (0.0,)
    factors: Sequence[float] = (1.0,)

    @classmethod
    def of(cls, pod: Pod, loops: Sequence[OpenLoop]) -> "Slowdown":
        """Return what the open loops, by rate, say about the simulation of `pod`."""
        if not loops:
            return cls()
        return cls([loop.rate for loop in loops], [_factor(pod, loop) for loop in loops])

    def at(self, rate: float) -> float:
        """Return the factor at `rate` requests per second."""
        return float(np.interp(rate, self.rates, self.factors))


def _factor(pod: Pod, loop: OpenLoop) -> float:
    """Return the factor for work with which the simulated latencies are, on average, the measured ones.

    The mean is that of the logarithms of p50, p90, p95 and p99. The simulation has the arrivals of the
    measurement, so that a short measurement differs from it by little else than what the pod does.
    """
    arrivals = list(poisson(loop.rate, loop.warm_up + loop.seconds))
    names = [name for name in SHARES if name != "max"]
    low, high = 1 / MOST_SLOWDOWN, MOST_SLOWDOWN
    while high / low > 1 + PRECISION / 2:
        factor = math.sqrt(low * high)
        outcome = with_arrivals(pod, arrivals, factor, loop.warm_up)
        if sum(math.log(outcome.quantile(SHARES[name]) / loop.latency[name]) for name in names) < 0:
            low = factor
        else:
            high = factor
    return math.sqrt(low * high)


def with_arrivals(pod: Pod, arrivals: Sequence[float], factor: float, warm_up: float = 0.0) -> Outcome:
    """Simulate these arrivals where all work takes `factor` times as long; those after `warm_up` count."""
    outcome = replayed(pod, [one / factor for one in arrivals], first=bisect(arrivals, warm_up))
    return outcome.slower(factor)


def fitted(curve: Curve) -> Pod:
    """Return the queueing model whose closed loops have the throughput of `curve`.

    With as many clients as a loop has, the number of requests in the pod is constant, so that the throughput
    is proportional to the pace at that number. Between two loops, the pace is interpolated.
    """
    pod = Pod(curve.cores, curve.lanes, curve.max_batch, _work(curve.lone, curve.image), curve.image)
    clients = [loop.clients for loop in curve.loops]
    paces = [loop.throughput / closed_loop(pod, loop.clients).throughput for loop in curve.loops]
    numbers = np.arange(1, clients[-1] + 1)
    pace = np.interp(np.log(numbers), np.log(clients), paces).tolist()
    return Pod(pod.cores, pod.lanes, pod.max_batch, pod.work, pod.image, pace)


def _work(lone: Loop, image: float) -> Sequence[float]:
    """Return the quantiles of the work beside the pass: the latency of a lone request without its pass.

    What differs between lone requests is the image and the machine. Below the median, all have the median.
    """
    shares = np.linspace(0, 1, STEPS + 1)
    latencies = np.interp(shares, list(SHARES.values()), [lone.latency[name] for name in SHARES])
    work: list[float] = np.maximum(latencies - image, 0.0).tolist()
    return work


def _load(rate: float, outcome: Outcome) -> Load:
    return Load(
        rate, outcome.quantile(0.5), outcome.quantile(0.99), outcome.saturation, outcome.inflight, outcome.cpu
    )
