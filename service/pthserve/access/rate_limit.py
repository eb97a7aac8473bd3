"""A token bucket for each client."""

import re
import time
from collections.abc import Callable

from pthserve.errors import RateLimited
from pthserve.settings import RATE

CLEANUP_SIZE = 1000
"""Number of clients from which clients with a full bucket are removed."""
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}


class Rates:
    """Limits the request rate of each client, and its bursts to the requests of one period.

    The bucket is the generic cell rate algorithm (ITU-T I.371, A.1): one number per client, the time at which
    its bucket is full again.

    Args:
        limit: Such as `100/second` or `10 per 2 minutes`.
        clock: Returns the time in seconds.

    Raises:
        ValueError: `limit` is not a rate.
    """

    def __init__(self, limit: str, clock: Callable[[], float] = time.monotonic) -> None:
        parts = re.match(RATE, limit)
        if parts is None:
            raise ValueError(f"{limit!r} is not a rate such as 100/second")
        amount, units, unit = int(parts[1]), int(parts[2] or 1), parts[3]
        self._limit = f"{amount} per {units} {unit}"
        self._period = float(units * _SECONDS[unit])
        self._interval = self._period / amount
        self._clock = clock
        self._full: dict[str, float] = {}
        self._cleanup_size = CLEANUP_SIZE

    def check(self, client: str) -> None:
        """Raise RateLimited, with the time to wait, unless `client` has a token."""
        self._next(client, self._clock())

    def take(self, client: str) -> None:
        """Take a token of `client`; raises RateLimited, with the time to wait, if it has none."""
        now = self._clock()
        self._full[client] = self._next(client, now)
        if len(self._full) > self._cleanup_size:
            self._full = {name: until for name, until in self._full.items() if until > now}
            self._cleanup_size = max(CLEANUP_SIZE, 2 * len(self._full))

    def _next(self, client: str, now: float) -> float:
        """Return the time at which the bucket of `client` is full again if a token is taken now."""
        full = max(now, self._full.get(client, now)) + self._interval
        wait = full - now - self._period
        if wait > 1e-9:  # below the resolution of the clock, above rounding errors
            raise RateLimited(f"the rate limit of {self._limit} is exceeded; try again in {wait:.2g} s", wait)
        return full
