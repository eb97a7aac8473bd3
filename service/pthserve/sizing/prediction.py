"""Prediction: the latency of a pod at a load, and the load at which its latency exceeds a limit."""

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

    The simulated latencies are corrected by what the open loops of the curve measured; see `Correction`.
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
            self._known[rate] = _load(rate, open_loop(self.pod, rate), self.correction)
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
    """How many times as long as simulated latencies the measured ones were, at the rates of open loops.

    The simulation of an open loop has the same arrivals as the measurement. So what is left of the difference
    is not that of a short measurement. Between two rates, the factor is interpolated; at a rate near 0 it is
    1, since the simulation begins with the latencies of a single client.

    Attributes:
        rates: Requests per second, from 0.
        p50, p99: Factors of these quantiles at the rates.
    """

    rates: Sequence[float] = (0.0,)
    p50: Sequence[float] = (1.0,)
    p99: Sequence[float] = (1.0,)

    @classmethod
    def of(cls, pod: Pod, loops: Sequence[OpenLoop]) -> "Correction":
        """Return the correction of what is simulated with `pod`, from open loops by rate."""
        rates, p50, p99 = [0.0], [1.0], [1.0]
        for loop in loops:
            arrivals = list(poisson(loop.rate, loop.warm_up + loop.seconds))
            outcome = replayed(pod, arrivals, first=bisect(arrivals, loop.warm_up))
            rates.append(loop.rate)
            p50.append(loop.latency["p50"] / outcome.quantile(0.5))
            p99.append(loop.latency["p99"] / outcome.quantile(0.99))
        return cls(rates, p50, p99)

    def at(self, rate: float) -> tuple[float, float]:
        """Return the factors of p50 and p99 at `rate` requests per second."""
        return float(np.interp(rate, self.rates, self.p50)), float(np.interp(rate, self.rates, self.p99))


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


def _load(rate: float, outcome: Outcome, correction: Correction) -> Load:
    p50, p99 = correction.at(rate)
    return Load(
        rate=rate,
        p50=p50 * outcome.quantile(0.5),
        p99=p99 * outcome.quantile(0.99),
        saturation=outcome.saturation,
        inflight=outcome.inflight,
        cpu=outcome.cpu,
    )
