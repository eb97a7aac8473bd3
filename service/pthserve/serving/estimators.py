"""Estimators: averages over the recent past, of the use of a resource and of durations."""

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType

WINDOW = 10.0
"""Seconds after which a moment counts 1/e. A horizontal pod autoscaler reads the value every 15 s, which must
then reflect the current load."""


class Busy:
    """An exponentially weighted average of the share of `capacity` in use; `with busy:` uses one unit.

    The share is constant between two changes, so the average is exact without sampling. Any thread may use
    it.

    Args:
        capacity: Number of units.
        clock: Returns the time in seconds.
    """

    def __init__(self, capacity: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._using = 0
        self._share = 0.0
        self._since = clock()

    def __enter__(self) -> None:
        self._change(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._change(-1)

    def share(self) -> float:
        """Return the average share in use, 0 to 1."""
        with self._lock:
            return self._average(self._clock())

    def resize(self, capacity: int) -> None:
        """Change the capacity from now on; the past counts as a share of the old capacity."""
        with self._lock:
            now = self._clock()
            self._share, self._since = self._average(now), now
            self._capacity = capacity

    def _change(self, by: int) -> None:
        with self._lock:
            now = self._clock()
            self._share, self._since = self._average(now), now
            self._using += by

    def _average(self, now: float) -> float:
        level = min(1.0, self._using / self._capacity)
        return level + (self._share - level) * math.exp((self._since - now) / WINDOW)


class Smoothed:
    """An exponentially weighted average over about the last `count` observations; 0 before the first."""

    def __init__(self, count: float = 16.0) -> None:
        self._count = count
        self._seen = 0.0
        self.value = 0.0

    def restart(self) -> None:
        """Let the next observation replace the average; until then it keeps its value."""
        self._seen = 0.0

    def observe(self, value: float, weight: float = 1.0) -> None:
        """Add `value`, which counts as `weight` observations."""
        self._seen = min(self._count, self._seen + weight)
        self.value += (value - self.value) * min(1.0, weight / self._seen)
