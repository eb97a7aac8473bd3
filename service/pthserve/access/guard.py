"""Guard: who is let in, over HTTP and gRPC alike, before anything of a request but its headers is read."""

from collections.abc import Collection, Iterator

from pthserve.access.clients import Clients
from pthserve.access.keys import Keys
from pthserve.access.rate_limit import Rates
from pthserve.errors import Unauthorized
from pthserve.settings import Settings

Headers = Collection[tuple[bytes, bytes]]
ACQUAINTED = 10_000
"""Pairs of an address and a key it has used that are remembered."""


class Guard:
    """Holds clients to the keys and the rate of `settings`; one for all transports, so that they share both.

    Raises PthserveError where the keys cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = Keys(settings.api_keys) if settings.api_keys is not None else None
        self._rates = Rates(settings.rate_limit) if settings.rate_limit is not None else None
        self._clients = Clients(settings.trusted_proxies)
        self._acquainted: dict[tuple[str, str], None] = {}

    def admit(self, headers: Headers, peer: str) -> None:
        """Let the request with these headers, names in lower case, from the address `peer` in.

        Raises Unauthorized without one of the keys, and RateLimited where the key, or the address where there
        are no keys, has no token left.
        """
        if self._rates is None:
            if self._keys is not None:
                self._keys.owner(_offered(headers))
            return
        client = self._clients.name(peer, headers)
        if self._keys is not None:
            client = self._owner(self._keys, self._rates, headers, client)
        self._rates.take(client)

    def _owner(self, keys: Keys, rates: Rates, headers: Headers, address: str) -> str:
        """The owner of the key in `headers`. Without one, the address pays for the guess.

        An address that has no token left is told nothing about a key that it has not used before: otherwise
        it could go on guessing. Keys that it has used still work, for many clients may share an address.
        """
        try:
            owner = keys.owner(_offered(headers))
        except Unauthorized:
            rates.take(address)
            raise
        if (address, owner) not in self._acquainted:
            rates.check(address)
            if len(self._acquainted) >= ACQUAINTED:
                del self._acquainted[next(iter(self._acquainted))]
            self._acquainted[address, owner] = None
        return owner


def _offered(headers: Headers) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()
