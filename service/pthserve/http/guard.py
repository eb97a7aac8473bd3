"""Guard: who is let in, over HTTP and gRPC alike, before anything of a request but its headers is read."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from pthserve.errors import PthserveError
from pthserve.http.keys import Keys
from pthserve.http.logs import QUIET
from pthserve.http.problems import answer
from pthserve.settings import Settings

if TYPE_CHECKING:
    from pthserve.http.rates import Rates

OPEN = QUIET | {"/", "/docs", "/openapi.json"}
"""Paths for which no key is asked and no token taken: probes, metrics, and what is the same for any model."""
OPEN_FOLDER = "/page/"
"""The files of the web page are below it."""


class Guard:
    """Holds clients to the keys and the rate of `settings`; one for all transports, so that they share both.

    Raises PthserveError where the keys cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = Keys(settings.api_keys) if settings.api_keys is not None else None
        self._rates = _rates(settings.rate_limit) if settings.rate_limit is not None else None

    def admit(self, headers: Iterable[tuple[bytes, bytes]], address: str) -> None:
        """Let the request with these headers, names in lower case, from `address` in.

        Raises Unauthorized without one of the keys, and RateLimited where the key, or the address where there
        are no keys, has no token left.
        """
        client = self._keys.owner(_offered(headers)) if self._keys is not None else address
        if self._rates is not None:
            self._rates.take(client)


class Guarded:
    """ASGI middleware: `guard` before every path that is not open."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            address = scope["client"][0] if scope["client"] else ""
            try:
                self._guard.admit(scope["headers"], address)
            except PthserveError as error:
                await answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _rates(limit: str) -> "Rates":
    from pthserve.http.rates import Rates  # with a library that is slow to import, and few ask for it

    return Rates(limit)


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_FOLDER)


def _offered(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()
