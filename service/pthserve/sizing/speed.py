"""Speed: loads on a service whose machine becomes slower and faster, stated as if it did not.

A virtual machine may do so by a tenth within minutes, which near the capacity changes a percentile by half.
So a short closed loop between any two loads tells the speed. On a machine that is slower by a factor, a pod
is the same with another clock: its times are longer, and the rates that it bears are lower, by that factor.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

from pthserve.bench.load import Point, Round
from pthserve.errors import PthserveError

BUSY = 8
"""Clients of the closed loops between the loads."""

Load = Callable[[Point, float], Round]
"""Puts a load on the service for so many seconds."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A load, and the speed before and after it, in responses per second of a closed loop of BUSY clients."""

    round: Round
    before: float
    after: float

    @property
    def speed(self) -> float:
        """The speed during the load."""
        return (self.before + self.after) / 2

    def at(self, speed: float) -> Round:
        """Return what would have been measured at another speed."""
        factor, one = self.speed / speed, self.round
        rate = one.point.rate
        return replace(
            one,
            point=replace(one.point, rate=None if rate is None else rate / factor),
            seconds=factor * one.seconds,
            warm_up=factor * one.warm_up,
            latencies=[factor * latency for latency in one.latencies],
        )


class Speeds:
    """The speed now, and what it was.

    Args:
        load: Puts a load on the service.
        seconds: Duration of each closed loop.

    Raises:
        PthserveError: No response came in this time.
    """

    def __init__(self, load: Load, seconds: float) -> None:
        self._load = load
        self._seconds = seconds
        self._found = [self._measured()]

    @property
    def now(self) -> float:
        """The last speed that was measured."""
        return self._found[-1]

    @property
    def typical(self) -> float:
        """The median of all."""
        return median(self._found)

    @property
    def range(self) -> float:
        """By which share the highest exceeds the lowest."""
        return max(self._found) / min(self._found) - 1

    def timed(self, one: Round) -> Timed:
        """Return the load that has just been measured, with the speed before it and now."""
        before = self.now
        self._found.append(self._measured())
        return Timed(one, before, self.now)

    def _measured(self) -> float:
        throughput = self._load(Point(BUSY), self._seconds).throughput
        if not throughput:
            raise PthserveError(
                f"{BUSY} clients got no response within {self._seconds:g} s; measure longer (--seconds)"
            )
        return throughput
