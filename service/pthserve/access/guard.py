"""Guard: checks API key and rate limit over HTTP and gRPC, before the body of a request is read."""

from collections.abc import Collection, Iterator

from pthserve.access.clients import Clients
from pthserve.access.keys import Keys
from pthserve.access.rate_limit import Rates
from pthserve.errors import Unauthorized
from pthserve.settings import Settings

Headers = Collection[tuple[bytes, bytes]]
KNOWN_PAIRS = 10_000
"""Maximum number of remembered pairs of a client address and a key that it has used."""


class Guard:
    """Enforces the API keys and the rate limit of `settings`, shared by all transports.

    Raises:
        PthserveError: The keys cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = Keys(settings.api_keys) if settings.api_keys is not None else None
        self._rates = Rates(settings.rate_limit) if settings.rate_limit is not None else None
        self._clients = Clients(settings.trusted_proxies)
        self._known_pairs: dict[tuple[str, str], None] = {}

    def admit(self, headers: Headers, peer: str) -> None:
        """Check a request.

        Args:
            headers: Its headers, with names in lower case.
            peer: The address that it comes from.

        Raises:
            Unauthorized: It has no valid key.
            RateLimited: The rate of the key, or of the address if there are no keys, is exceeded.
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
        """Return the owner of the key in `headers`. A wrong key counts against the rate of the address.

        If the rate of an address is exceeded, a key that it has not used before is not checked: otherwise it
        could go on guessing. Keys that it has used still work, since many clients may share an address.
        """
        try:
            owner = keys.owner(_offered(headers))
        except Unauthorized:
            rates.take(address)
            raise
        if (address, owner) not in self._known_pairs:
            rates.check(address)
            if len(self._known_pairs) >= KNOWN_PAIRS:
                del self._known_pairs[next(iter(self._known_pairs))]
            self._known_pairs[address, owner] = None
        return owner


def _offered(headers: Headers) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()
