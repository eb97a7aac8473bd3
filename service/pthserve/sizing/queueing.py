"""Queueing: a discrete-event simulation of the requests in one pod, from arrival to response.

A request needs a core for its own work (HTTP, decoding), then is in a forward pass with others. Batches are
formed as in `serving.batcher` and `engines.request_pool`: all images that wait, shared among the lanes.
The cores are shared evenly among the threads that can run (processor sharing), so that all tasks advance at
the same pace, and each ends at a time that is known in advance on a clock of that pace.

The pace depends on the number of requests in the pod: at each number, the throughput is the one that was
measured with as many clients that wait for their responses. This is the flow-equivalent server of K. M.
Chandy, U. Herzog and L. Woo, "Parametric Analysis of Queuing Networks", IBM Journal of Research and
Development 19(1), 1975. It is exact for product-form networks, and an approximation here.

Arrivals are a Poisson process: requests of many clients that do not wait for each other.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

REQUESTS = 40_000
"""Simulated requests: 400 of them are beyond the 99th percentile."""
WARM_UP = 0.1
"""Share of the requests that come before those that count."""
SEED = 23
"""The same arrivals for all loads, so that two loads differ by nothing else."""


@dataclass(frozen=True, slots=True)
class Pod:
    """What a request needs, and what there is.

    Attributes:
        cores: Number of cores, and of threads that decode at the same time.
        lanes: Number of forward passes at the same time, which share the cores.
        max_batch: Maximum number of images in a pass.
        work: Seconds of one core that a request needs beside its pass: quantiles at equal distances, from the
            smallest to the largest. One value if all are the same.
        image: Seconds of a pass of one image on all cores. A pass of several needs as much for each.
        pace: How fast all work proceeds with 1, 2, ... requests in the pod; the last value is also for more.
    """

    cores: int
    lanes: int
    max_batch: int
    work: Sequence[float]
    image: float
    pace: Sequence[float] = (1.0,)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What requests experience at one load, and the metrics of the pod.

    Attributes:
        throughput: Responses per second.
        latencies: Seconds from arrival to response, sorted.
        saturation: As `pthserve_saturation`: share of time with a pass, or share of the decoders in use.
        inflight: As `pthserve_inflight_requests`: mean number of requests in the pod.
        cpu: Share of the cores in use.
    """

    throughput: float
    latencies: Sequence[float]
    saturation: float
    inflight: float
    cpu: float

    def slower(self, factor: float) -> "Outcome":
        """Return the outcome with all times, of work and between arrivals, so many times as long."""
        return replace(
            self,
            throughput=self.throughput / factor,
            latencies=[factor * latency for latency in self.latencies],
        )

    def quantile(self, share: float) -> float:
        """The latency in seconds that this share of the requests does not exceed."""
        return float(np.quantile(self.latencies, share))


def open_loop(pod: Pod, rate: float, requests: int = REQUESTS, seed: int = SEED) -> Outcome:
    """Simulate Poisson arrivals of `rate` requests per second."""
    draw = np.random.default_rng(seed)
    # Given their number, the arrivals of a Poisson process are uniform in time (S. M. Ross, Introduction to
    # Probability Models, theorem 5.2). So the rate, to which queues are sensitive, is exact.
    arrivals = np.sort(draw.random(requests)) * (requests / rate)
    return _Simulation(pod, _spread(draw, requests), arrivals.tolist()).run(requests)


def replayed(pod: Pod, arrivals: Sequence[float], first: int = 0, seed: int = SEED) -> Outcome:
    """Simulate requests that arrive at these times, in seconds and in order; those from `first` on count."""
    draw = np.random.default_rng(seed)
    return _Simulation(pod, _spread(draw, len(arrivals)), arrivals).run(len(arrivals), first)


def closed_loop(pod: Pod, clients: int, requests: int = 2000, seed: int = SEED) -> Outcome:
    """Simulate clients that each send the next request when they have the response.

    There are as many requests in the pod as clients, until the last response that counts.
    """
    draw = np.random.default_rng(seed)
    return _Simulation(pod, _spread(draw, requests + clients), [0.0] * clients, again=True).run(requests)


def _spread(draw: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Numbers from 0 to 1 in random order, one in each of `count` equal intervals."""
    return (draw.permutation(count) + draw.random(count)) / count


@dataclass(slots=True)
class _Pass:
    """A forward pass. threads: how many it runs on. lanes: how many lanes it holds."""

    requests: list[int]
    threads: int = 0
    lanes: int = 0


@dataclass(slots=True)
class _Use:
    """Integrals over time since `since`: of cores in use, passes running, decoders in use, requests."""

    since: float = 0.0
    cores: float = 0.0
    engine: float = 0.0
    decoders: float = 0.0
    requests: float = 0.0


@dataclass(slots=True)
class _Simulation:
    """One run. draws: from 0 to 1, for the work of each request. again: after a response, send another."""

    pod: Pod
    draws: NDArray[np.float64]
    arrivals: Sequence[float]
    again: bool = False
    now: float = 0.0
    _clock: float = 0.0
    _threads: int = 0
    _inside: int = 0
    _sent: int = 0
    _done: int = 0
    _decoding: int = 0
    _free: int = 0
    _use: _Use = field(default_factory=_Use)
    _ends: list[tuple[float, int, int | _Pass]] = field(default_factory=list)
    _to_decode: deque[int] = field(default_factory=deque)
    _to_pass: deque[int] = field(default_factory=deque)
    _passes: list[_Pass] = field(default_factory=list)
    _blocked: list[_Pass] = field(default_factory=list)
    _came: list[float] = field(default_factory=list)
    _work: list[float] = field(default_factory=list)

    def run(self, total: int, first: int | None = None) -> Outcome:
        """Simulate until there were `total` responses; those from the number `first` on count.

        Without it, those after the warm-up count.
        """
        first = int(WARM_UP * total) if first is None else first
        quantiles = np.asarray(self.pod.work)
        self._work = np.interp(self.draws, np.linspace(0, 1, len(quantiles)), quantiles).tolist()
        self._free = self.pod.lanes
        latencies: list[float] = []
        number = 0
        while self._done < total:
            pace = self._pace()
            ends = self.now + (self._ends[0][0] - self._clock) / pace if self._ends else math.inf
            if number < len(self.arrivals) and self.arrivals[number] <= ends:
                self._until(self.arrivals[number], pace)
                number += 1
                self._arrive()
                continue
            self._until(ends, pace)
            _, _, task = heapq.heappop(self._ends)
            for request in self._ended(task):
                latencies.append(self.now - self._came[request])
                self._done += 1
                self._inside -= 1
                if self._done == first:
                    self._use = _Use(self.now)
                if self.again and self._sent < len(self.draws):
                    self._arrive()
        return self._outcome(sorted(latencies[first:total]))

    def _outcome(self, latencies: Sequence[float]) -> Outcome:
        use, seconds = self._use, self.now - self._use.since
        return Outcome(
            throughput=len(latencies) / seconds,
            latencies=latencies,
            saturation=max(use.engine, use.decoders) / seconds,
            inflight=use.requests / seconds,
            cpu=use.cores / seconds / self.pod.cores,
        )

    def _pace(self) -> float:
        """How far the clock of the tasks advances in a second."""
        if not self._threads:
            return 1.0
        pace = self.pod.pace
        return min(1.0, self.pod.cores / self._threads) * pace[min(self._inside, len(pace)) - 1]

    def _until(self, end: float, pace: float) -> None:
        seconds = end - self.now
        use = self._use
        use.cores += seconds * min(self._threads, self.pod.cores)
        use.engine += seconds * bool(self._passes)
        use.decoders += seconds * min(1.0, self._decoding / self.pod.cores)
        use.requests += seconds * self._inside
        self._clock += seconds * pace
        self.now = end

    def _begin(self, task: int | _Pass, work: float, threads: int) -> None:
        self._threads += threads
        owner = task if isinstance(task, int) else task.requests[0]
        heapq.heappush(self._ends, (self._clock + work, owner, task))

    def _arrive(self) -> None:
        self._came.append(self.now)
        self._to_decode.append(self._sent)
        self._sent += 1
        self._inside += 1
        self._decode()

    def _decode(self) -> None:
        while self._to_decode and self._decoding < self.pod.cores:
            request = self._to_decode.popleft()
            self._decoding += 1
            self._begin(request, self._work[request], 1)

    def _ended(self, task: int | _Pass) -> Sequence[int]:
        """Go on after a task; the requests that are answered by that."""
        if isinstance(task, int):
            self._threads -= 1
            self._decoding -= 1
            self._decode()
            if not self.pod.image:
                return [task]
            self._to_pass.append(task)
            self._form()
            return ()
        self._threads -= task.threads
        self._free += task.lanes
        self._passes.remove(task)
        if self._blocked and self._free:
            self._start(self._blocked.pop(0), lanes=1)
        self._form()
        return task.requests

    def _form(self) -> None:
        """Begin passes as `Batcher` does: each lane gets its share of the images that wait."""
        while self._to_pass and len(self._passes) < self.pod.lanes:
            share = math.ceil(len(self._to_pass) / self.pod.lanes)
            size = min(share, self.pod.max_batch)
            batch = _Pass([self._to_pass.popleft() for _ in range(size)])
            alone = not self._passes
            self._passes.append(batch)
            if alone and size == 1:
                batch.threads = self.pod.cores
                self._begin(batch, self.pod.image, batch.threads)
            elif self._free:
                self._start(batch, min(size, self._free) if alone else 1)
            else:
                self._blocked.append(batch)

    def _start(self, batch: _Pass, lanes: int) -> None:
        """Run `batch` on so many lanes, as `Lanes` does: each has its part of the cores."""
        batch.lanes = lanes
        batch.threads = lanes * self.pod.cores // self.pod.lanes
        self._free -= lanes
        images = math.ceil(len(batch.requests) / lanes)
        self._begin(batch, images * self.pod.image * self.pod.lanes, batch.threads)
