"""Load: closed loops, in which each client waits for its answer, and open ones, in which nobody waits.

An open loop sends at a fixed rate whatever the answers do, and a latency counts from when the request was due
and not from when it was sent: else a service that stalls would also stall the clock that times it (known as
coordinated omission, after Gil Tene).
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pthserve.bench.client import ConnectionFailed, Pool

MOST_CONNECTIONS = 1024
"""In an open loop. Beyond them a request waits for one, and the wait counts."""

QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Point:
    """One load: so many `clients` that each wait for their answers; or, where it is set, `rate` a second."""

    clients: int = 8
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g}/s"
        return f"{self.clients} client{'s' if self.clients > 1 else ''}"


@dataclass(slots=True)
class Round:
    """What a point brought.

    deadline: seconds after which an answer is of no use. seconds: that were measured.
    latencies: of the answers with status 200, in seconds. statuses: of all answers; failures: why none came.
    cpu: cores' worth of CPU that the client itself took.
    """

    point: Point
    deadline: float
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0

    @property
    def throughput(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    @property
    def goodput(self) -> float:
        """Good answers a second that came within the deadline."""
        return sum(x <= self.deadline for x in self.latencies) / self.seconds if self.seconds else 0.0

    def quantiles(self) -> NDArray[np.float64]:
        """Latencies in seconds at QUANTILES; NaN where there was no answer."""
        if not self.latencies:
            return np.full(len(QUANTILES), math.nan)
        quantiles: NDArray[np.float64] = np.quantile(self.latencies, QUANTILES)
        return quantiles

    def to_dict(self) -> dict[str, object]:
        """As plain values; seconds, and answers a second."""
        names = ["p50", "p90", "p95", "p99", "max"]
        values = [None if math.isnan(value) else round(value, 6) for value in self.quantiles().tolist()]
        return {
            "clients": None if self.point.rate is not None else self.point.clients,
            "rate": self.point.rate,
            "seconds": round(self.seconds, 3),
            "throughput": round(self.throughput, 3),
            "goodput": round(self.goodput, 3),
            "deadline": self.deadline,
            "latency": dict(zip(names, values, strict=True)),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "failures": dict(self.failures),
            "client_cpu": round(self.cpu, 3),
        }


Now = Callable[[Round], None]
"""Called now and then with the round as far as it has come."""


async def measure(
    pool_of: Callable[[int], Pool],
    point: Point,
    *,
    seconds: float,
    warm_up: float,
    deadline: float,
    timeout: float,  # noqa: ASYNC109 - of each request
    now: Now | None = None,
) -> Round:
    """Put the load `point` on a service for `warm_up` + `seconds` without a break; the latter count.

    pool_of: makes the pool, given its most connections. timeout: seconds after which a request is given up.
    """
    pool = pool_of(point.clients if point.rate is None else MOST_CONNECTIONS)
    start = time.perf_counter() + warm_up
    load = _Load(pool, Round(point, deadline), timeout, start, start + seconds)
    clock = asyncio.create_task(_clock(load, now))
    try:
        await (load.closed() if point.rate is None else load.open())
        await clock
    finally:
        clock.cancel()
        pool.close()
    return load.round


@dataclass(slots=True)
class _Load:
    """A load as it runs; start, end: of what counts, in time.perf_counter()'s seconds."""

    pool: Pool
    round: Round
    timeout: float
    start: float
    end: float

    async def closed(self) -> None:
        """Each client asks again when it has its answer. What counts is what is answered in the time."""
        await asyncio.gather(*(self._client() for _ in range(self.round.point.clients)))

    async def open(self) -> None:
        """What counts is what is due in the time, however late it is answered."""
        rate = self.round.point.rate
        assert rate is not None
        began = time.perf_counter()
        asked: set[asyncio.Task[bool]] = set()
        for number in range(math.ceil((self.end - began) * rate)):
            due = began + number / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._one(due))
            asked.add(task)
            task.add_done_callback(asked.discard)
        await asyncio.gather(*asked)
        self.round.seconds = max(self.end, time.perf_counter()) - self.start

    async def _client(self) -> None:
        while (due := time.perf_counter()) < self.end:
            if not await self._one(due):
                await asyncio.sleep(0.1)  # a service that is gone must not be asked as fast as a loop turns

    async def _one(self, due: float) -> bool:
        """One request, whose latency counts from `due`; whether it was answered."""
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


async def _clock(load: _Load, now: Now | None) -> None:
    """Time what counts, and the CPU that it took here."""
    await asyncio.sleep(load.start - time.perf_counter())
    cpu = time.process_time()
    while (elapsed := time.perf_counter() - load.start) < load.end - load.start:
        load.round.seconds = elapsed
        if now:
            now(load.round)
        await asyncio.sleep(min(0.25, load.end - time.perf_counter()))
    load.round.seconds = elapsed
    load.round.cpu = (time.process_time() - cpu) / elapsed
