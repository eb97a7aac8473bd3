"""Rates: a token bucket for each client."""

import time
from collections.abc import Callable

from limits import parse

from pthserve.errors import RateLimited

ROOM = 1000
"""Clients that are remembered before those with a full bucket are forgotten."""


class Rates:
    """Lets each client send at a rate, and as many at once as the rate grants in its period.

    limit: such as `100/second` or `10 per 2 minutes`; raises ValueError where it is neither.

    The bucket is the generic cell rate algorithm (ITU-T I.371, A.1): one number a client, the moment at which
    its bucket is full again.
    """

    def __init__(self, limit: str, clock: Callable[[], float] = time.monotonic) -> None:
        rate = parse(limit)
        self._limit = str(rate)
        self._period = float(rate.get_expiry())
        self._interval = self._period / rate.amount
        self._clock = clock
        self._full: dict[str, float] = {}
        self._room = ROOM

    def take(self, client: str) -> None:
        """Take one of the tokens of `client`; raises RateLimited, with when there is one again."""
        now = self._clock()
        full = max(now, self._full.get(client, now)) + self._interval
        wait = full - now - self._period
        if wait > 1e-9:  # less than a clock tells, and more than rounding adds up to
            raise RateLimited(f"the rate limit of {self._limit} is spent; try again in {wait:.2g} s", wait)
        self._full[client] = full
        if len(self._full) > self._room:
            self._full = {name: until for name, until in self._full.items() if until > now}
            self._room = max(ROOM, 2 * len(self._full))
