"""Prediction: the latency of a pod at a load, and the load at which its latency exceeds a limit."""

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

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
MOST = 2.0
"""Factor, and its inverse, beyond which a measured open loop corrects neither the work nor a latency."""


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

    The simulation is corrected by what the open loops of the curve measured; see `Correction`.
    """

    def __init__(self, curve: Curve) -> None:
        self.curve = curve
        self.pod = fitted(curve)
        self.correction = Correction.of(self.pod, curve.open_loops)
        self._known: dict[float, Load] = {}

    def at(self, rate: float) -> Load:
        """Return the prediction for `rate` requests per second.

        Raises:
            ValueError: The rate is not above 0 and below the capacity of the curve: no latency is stationary.
        """
        if not 0 < rate < self.curve.capacity:
            raise ValueError(f"{rate:g} requests per second are not between 0 and {self.curve.capacity:g}")
        if rate not in self._known:
            factor = self.correction.factor(rate)
            outcome = open_loop(self.pod, factor * rate).slower(factor)
            p50, p99 = (self.correction.quantile(outcome, share) for share in (0.5, 0.99))
            self._known[rate] = Load(rate, p50, p99, outcome.saturation, outcome.inflight, outcome.cpu)
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
class Correction:
    """How the latencies of open loops differ from the simulated ones, at the rates of the loops.

    All work takes `factors` times as long as in the simulation. At a low rate that is not 1, although the
    simulation begins with the latencies of a single client: those requests follow each other, and one that
    finds idle cores and cold caches takes longer. Between two rates, the factor is interpolated; beyond the
    first and the last, it is that of the nearest.

    Then each quantile is multiplied by exp(`stretch` * (x - MIDDLE)), where x is its `_position`. With a
    stretch above 0, the latencies of the loops vary more than the simulated ones.

    What a single loop says depends on what the machine did in those seconds, by a tenth and more. So the
    logarithms of the factors are on the line of least squares through those of the loops, and the stretch is
    the mean of theirs.

    Attributes:
        rates: Requests per second.
        factors: The factor at each of them.
        stretch: The stretch at all rates.
    """

    rates: Sequence[float] = (0.0,)
    factors: Sequence[float] = (1.0,)
    stretch: float = 0.0

    @classmethod
    def of(cls, pod: Pod, loops: Sequence[OpenLoop]) -> "Correction":
        """Return what the open loops, by rate, say about the simulation of `pod`."""
        if not loops:
            return cls()
        rates = [loop.rate for loop in loops]
        factors, stretches = zip(*(_fit(pod, loop) for loop in loops), strict=True)
        line = np.polyfit(rates, np.log(factors), min(1, len(set(rates)) - 1))
        return cls(rates, np.exp(np.polyval(line, rates)).tolist(), fmean(stretches))

    def factor(self, rate: float) -> float:
        """Return the factor for all work at `rate` requests per second."""
        return float(np.interp(rate, self.rates, self.factors))

    def quantile(self, outcome: Outcome, share: float) -> float:
        """Return a latency of `outcome`, whose work took `factor` times as long, with the stretch."""
        return outcome.quantile(share) * math.exp(self.stretch * (_position(share) - MIDDLE))


def _position(share: float) -> float:
    """Return the place of a quantile on the scale on which those of an exponential distribution are even."""
    return -math.log10(1 - share)


FITTED = ("p50", "p90", "p95", "p99")
"""Quantiles by which an open loop corrects the simulation. The maximum is left to chance."""
MIDDLE = sum(_position(SHARES[name]) for name in FITTED) / len(FITTED)
"""Mean position of FITTED: there, the stretch changes nothing."""


def _fit(pod: Pod, loop: OpenLoop) -> tuple[float, float]:
    """Return the factor and the stretch with which the simulated latencies are close to the measured ones.

    With the factor, the mean logarithms of the quantiles in FITTED are the same. The stretch is the slope of
    the line of least squares through the differences that are left. The simulation has the arrivals of the
    measurement, so that a short measurement differs from it by little else than what the pod does.
    """
    arrivals = list(poisson(loop.rate, loop.warm_up + loop.seconds))

    def differences(factor: float) -> list[float]:
        outcome = with_arrivals(pod, arrivals, factor, loop.warm_up)
        return [math.log(loop.latency[name] / outcome.quantile(SHARES[name])) for name in FITTED]

    low, high = 1 / MOST, MOST
    while high / low > 1 + PRECISION / 2:
        factor = math.sqrt(low * high)
        if sum(differences(factor)) > 0:
            low = factor
        else:
            high = factor
    factor = math.sqrt(low * high)
    positions = [_position(SHARES[name]) for name in FITTED]
    slope = float(np.polyfit(positions, differences(factor), 1)[0])
    most = math.log(MOST) / (max(positions) - MIDDLE)
    return factor, min(max(slope, -most), most)


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
