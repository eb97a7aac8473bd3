"""A token bucket for each client."""

import re
import time
from collections.abc import Callable

from pthserve.errors import RateLimited
from pthserve.settings import RATE

ROOM = 1000
"""Clients that are remembered before those with a full bucket are forgotten."""
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}


class Rates:
    """Lets each client send at a rate, and as many at once as the rate grants in its period.

    limit: such as `100/second` or `10 per 2 minutes`; raises ValueError where it is neither.

    The bucket is the generic cell rate algorithm (ITU-T I.371, A.1): one number a client, the moment at which
    its bucket is full again.
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
        self._room = ROOM

    def check(self, client: str) -> None:
        """Raise RateLimited, with when to come again, unless `client` has a token."""
        self._next(client, self._clock())

    def take(self, client: str) -> None:
        """Take one of the tokens of `client`; raises RateLimited, with when there is one again."""
        now = self._clock()
        self._full[client] = self._next(client, now)
        if len(self._full) > self._room:
            self._full = {name: until for name, until in self._full.items() if until > now}
            self._room = max(ROOM, 2 * len(self._full))

    def _next(self, client: str, now: float) -> float:
        """When the bucket of `client` is full again if a token is taken now."""
        full = max(now, self._full.get(client, now)) + self._interval
        wait = full - now - self._period
        if wait > 1e-9:  # less than a clock tells, and more than rounding adds up to
            raise RateLimited(f"the rate limit of {self._limit} is exceeded; try again in {wait:.2g} s", wait)
        return full
