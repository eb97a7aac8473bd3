"""Ramp: requests that come ever faster, from callers who wait for nobody, and how long each took."""

import asyncio
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Self

import numpy as np

from pthserve.bench.client import Connection, ConnectionFailed, Target

from .background import Background


@dataclass(frozen=True, slots=True)
class Timed:
    """A request: when it was due, in seconds since the beginning; how long its answer took from then on."""

    due: float
    seconds: float
    status: int


@dataclass
class Ramp(Background):
    """Requests for `image`'s class, in turn to each of `pods`, as an ingress sends them on.

    pods: addresses of services, which may be others at any time.
    course: moments, in seconds, and the requests a second at each; between two the rate grows evenly, and the
    last is kept until `settle`, or until the block is left.
    """

    image: Path
    pods: list[str]
    course: list[tuple[float, float]]
    answers: list[Timed] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return super().__enter__()

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def rate(self, moment: float) -> float:
        """Requests a second at `moment`."""
        moments, rates = zip(*self.course, strict=True)
        return float(np.interp(moment, moments, rates))

    def settle(self, rate: float) -> None:
        """Send `rate` requests a second from now on."""
        self.course = [(self.now, rate)]

    def p95(self, begin: float, end: float) -> float:
        """The 95th percentile of the seconds of what was due between two moments and answered, if any was."""
        found = [a.seconds for a in self.answers if begin <= a.due < end and a.status == 200]
        return float(np.quantile(found, 0.95)) if found else float("nan")

    def lost(self, begin: float, end: float) -> int:
        """How many of what was due between two moments were not answered with 200."""
        return sum(begin <= answer.due < end and answer.status != 200 for answer in self.answers)

    async def _run(self) -> None:
        asked: set[asyncio.Task[None]] = set()
        due = 0.0
        turns = count()
        while not self._stopped.is_set():
            await asyncio.sleep(max(0.0, due - self.now))
            pods = self.pods
            task = asyncio.create_task(self._one(pods[next(turns) % len(pods)], due))
            asked.add(task)
            task.add_done_callback(asked.discard)
            due += 1 / self.rate(due)
        await asyncio.gather(*asked)

    async def _one(self, pod: str, due: float) -> None:
        status = 0
        target = Target.parse(pod)
        request = target.request(self.image, [(b"Connection", b"close")])
        try:
            async with asyncio.timeout(15):
                connection = await Connection.open(target)
                status = await connection.ask(request)
        except (ConnectionFailed, TimeoutError):
            pass
        self.answers.append(Timed(due, self.now - due, status))
