"""Load: closed loops, in which each client waits for its response, and open loops, which have a fixed rate.

An open loop sends at a fixed rate however slow the responses are, and a latency counts from when the request
was due, not from when it was sent: otherwise a service that stalls would also delay the requests that measure
it (known as coordinated omission, after Gil Tene).
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import uvloop
from numpy.typing import NDArray

from pthserve.bench.client import ConnectionFailed, Pool, Target
from pthserve.errors import PthserveError
from pthserve.text import counted

MOST_CONNECTIONS = 1024
"""Maximum number of connections in an open loop. A request that waits for one counts the wait."""

QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)

Arrivals = Literal["even", "poisson"]
"""When an open loop sends: at equal intervals, or at random times."""
ARRIVALS: tuple[Arrivals, ...] = get_args(Arrivals)
SEED = 0
"""Of random arrivals by default, so that two measurements at a rate send at the same times."""


@dataclass(frozen=True, slots=True)
class Point:
    """One load: a closed loop of `clients`, or an open loop of `rate` requests per second if that is set.

    arrivals: when an open loop sends; `poisson` is a Poisson process. seed: of its random times.
    """

    clients: int = 8
    rate: float | None = None
    arrivals: Arrivals = "even"
    seed: int = SEED

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g}/s{', random' if self.arrivals == 'poisson' else ''}"
        return counted(self.clients, "client")


@dataclass(slots=True)
class Round:
    """The measurements at one point.

    Attributes:
        deadline: Maximum seconds for a response to count as goodput.
        warm_up: Seconds of the load before the measurement.
        seconds: Duration of the measurement.
        latencies: Seconds of each response with status 200.
        statuses: Number of responses by status.
        failures: Number of requests without a response, by reason.
        cpu: CPU cores that the client itself used.
    """

    point: Point
    deadline: float
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0
    warm_up: float = 0.0

    @property
    def throughput(self) -> float:
        """Responses with status 200 per second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    @property
    def goodput(self) -> float:
        """Responses with status 200 within the deadline, per second."""
        return sum(x <= self.deadline for x in self.latencies) / self.seconds if self.seconds else 0.0

    def quantiles(self) -> NDArray[np.float64]:
        """Return the latencies in seconds at QUANTILES; NaN if there was no response."""
        if not self.latencies:
            return np.full(len(QUANTILES), math.nan)
        quantiles: NDArray[np.float64] = np.quantile(self.latencies, QUANTILES)
        return quantiles

    @property
    def p99(self) -> float:
        """The 99th percentile of the latencies in seconds; NaN if there was no response."""
        return float(self.quantiles()[QUANTILES.index(0.99)])

    def to_dict(self) -> dict[str, object]:
        """Return plain values, in seconds and responses per second."""
        names = ["p50", "p90", "p95", "p99", "max"]
        values = [None if math.isnan(value) else round(value, 6) for value in self.quantiles().tolist()]
        return {
            "clients": None if self.point.rate is not None else self.point.clients,
            "rate": self.point.rate,
            "arrivals": None if self.point.rate is None else self.point.arrivals,
            "warm_up": self.warm_up,
            "seconds": round(self.seconds, 3),
            "throughput": round(self.throughput, 3),
            "goodput": round(self.goodput, 3),
            "deadline": self.deadline,
            "latency": dict(zip(names, values, strict=True)),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "failures": dict(self.failures),
            "client_cpu": round(self.cpu, 3),
        }


Progress = Callable[[Round], None]
"""Called regularly with the round so far."""


async def measure(
    pool_of: Callable[[int], Pool],
    point: Point,
    *,
    seconds: float,
    warm_up: float,
    deadline: float,
    timeout: float,  # noqa: ASYNC109 - of each request
    progress: Progress | None = None,
) -> Round:
    """Put the load `point` on a service for `warm_up` and then `seconds`, of which the latter count.

    Args:
        pool_of: Makes the pool, given its maximum number of connections.
        timeout: Seconds after which a request is given up.
    """
    pool = pool_of(point.clients if point.rate is None else MOST_CONNECTIONS)
    start = time.perf_counter() + warm_up
    load = _Load(pool, Round(point, deadline, warm_up=warm_up), timeout, start, start + seconds)
    clock = asyncio.create_task(_clock(load, progress))
    try:
        await (load.closed() if point.rate is None else load.open())
        await clock
    finally:
        clock.cancel()
        pool.close()
    return load.round


def measure_all(
    target: Target,
    requests: Sequence[bytes],
    points: Sequence[Point],
    *,
    seconds: float,
    warm_up: float,
    deadline: float,
    timeout: float,
    progress: Callable[[Sequence[Round]], None] | None = None,
) -> Sequence[Round]:
    """Send each request once, then put each of the loads on a service; see `measure`.

    Args:
        progress: Called regularly with the rounds so far.

    Raises:
        PthserveError: The service does not respond, or responds with another status than 200.
    """
    rounds: list[Round] = []

    async def run() -> None:
        await send_once(target, requests, timeout)
        for point in points:
            one = await measure(
                lambda most: Pool(target, requests, most),
                point,
                seconds=seconds,
                warm_up=warm_up,
                deadline=deadline,
                timeout=timeout,
                progress=progress and (lambda now: progress([*rounds, now])),
            )
            rounds.append(one)

    uvloop.run(run())
    return rounds


def poisson(rate: float, seconds: float, seed: int = SEED) -> Iterator[float]:
    """Yield the times of a Poisson process of `rate` per second, up to `seconds`; always the same ones."""
    draw = random.Random(seed)  # noqa: S311
    after = draw.expovariate(rate)
    while after < seconds:
        yield after
        after += draw.expovariate(rate)


async def send_once(target: Target, requests: Sequence[bytes], timeout: float) -> None:  # noqa: ASYNC109
    """Send each request once before the measurements.

    Raises:
        PthserveError: The service does not respond, or responds with another status than 200.
    """
    pool = Pool(target, requests, 1)
    try:
        statuses = {await pool.ask(timeout) for _ in requests}
    except (ConnectionFailed, TimeoutError) as error:
        raise PthserveError(
            f"{target.authority} does not respond: {error or type(error).__name__}"
        ) from error
    finally:
        pool.close()
    if statuses != {200}:
        refused = ", ".join(map(str, sorted(statuses - {200})))
        raise PthserveError(
            f"{target.url} responds with {refused} to these images, so there is nothing to measure"
        )


@dataclass(slots=True)
class _Load:
    """A running load. What counts is from `start` to `end`, in seconds of time.perf_counter()."""

    pool: Pool
    round: Round
    timeout: float
    start: float
    end: float

    async def closed(self) -> None:
        """Run clients that send again when they have a response. What counts is what is answered in time."""
        await asyncio.gather(*(self._client() for _ in range(self.round.point.clients)))

    async def open(self) -> None:
        """Send at a fixed rate. What counts is what is due in time, however late it is answered."""
        asked: set[asyncio.Task[bool]] = set()
        for due in self._due(time.perf_counter()):
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._one(due))
            asked.add(task)
            task.add_done_callback(asked.discard)
        await asyncio.gather(*asked)
        self.round.seconds = max(self.end, time.perf_counter()) - self.start

    def _due(self, began: float) -> Iterator[float]:
        """Yield the times at which an open loop sends, from `began` to `end`."""
        rate = self.round.point.rate
        assert rate is not None
        if self.round.point.arrivals == "even":
            yield from (began + number / rate for number in range(math.ceil((self.end - began) * rate)))
            return
        yield from (began + after for after in poisson(rate, self.end - began, self.round.point.seed))

    async def _client(self) -> None:
        while (due := time.perf_counter()) < self.end:
            if not await self._one(due):
                await asyncio.sleep(0.1)  # a service that is gone must not be called in a busy loop

    async def _one(self, due: float) -> bool:
        """Send one request, whose latency counts from `due`; return whether it was answered."""
        status, failure = 0, ""
        try:
            status = await self.pool.ask(self.timeout)
        except ConnectionFailed as error:
            failure = str(error)
        except TimeoutError:
            failure = "timeout"
        done = time.perf_counter()
        if not self.start <= (done if self.round.point.rate is None else due) < self.end:
            return not failure
        if failure:
            self.round.failures[failure] += 1
        else:
            self.round.statuses[status] += 1
        if status == 200:
            self.round.latencies.append(done - due)
        return not failure


async def _clock(load: _Load, progress: Progress | None) -> None:
    """Measure the duration of what counts, and the CPU that the client uses in it."""
    await asyncio.sleep(load.start - time.perf_counter())
    cpu = time.process_time()
    while (elapsed := time.perf_counter() - load.start) < load.end - load.start:
        load.round.seconds = elapsed
        if progress:
            progress(load.round)
        await asyncio.sleep(min(0.25, load.end - time.perf_counter()))
    load.round.seconds = elapsed
    load.round.cpu = (time.process_time() - cpu) / elapsed
