"""Averages over the recent past: the share of time that a resource was in use, and seconds an image."""

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType

WINDOW = 10.0
"""Seconds after which a moment counts 1/e. An HPA looks every 15 s: it must see the load as it is by then."""


class Busy:
    """An exponentially weighted average of how much of `capacity` is in use; `with busy:` uses one of it.

    Between two changes the level is constant, so the average is exact and needs no sampling. Any thread may
    use it.
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
        """The share in use, 0 to 1."""
        with self._lock:
            return self._average(self._clock())

    def resize(self, capacity: int) -> None:
        """Have another capacity from now on; what was in use until now stays a share of the old one."""
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
    """An exponentially weighted average over the last `count` observations, 0 before the first."""

    def __init__(self, count: float = 16.0) -> None:
        self._count = count
        self._seen = 0.0
        self.value = 0.0

    def restart(self) -> None:
        """Let the next observation replace the average, which stands until then."""
        self._seen = 0.0

    def observe(self, value: float, weight: float = 1.0) -> None:
        """Take in `value`, which stands for `weight` observations."""
        self._seen = min(self._count, self._seen + weight)
        self.value += (value - self.value) * min(1.0, weight / self._seen)
