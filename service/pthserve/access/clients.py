"""Clients: the address that a request comes from, the same over HTTP and gRPC, and through proxies."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import unquote

from pthserve.settings import listed

Address = IPv4Address | IPv6Address
_LONGEST = 100
"""Characters of an address, with a port and brackets; what is longer is not looked at."""


class Clients:
    """Names clients by address.

    trusted_proxies: addresses and networks, with commas; as the setting of that name.

    Only the right-most address of `X-Forwarded-For` that is not of a trusted proxy is believed: what is left
    of it was written by whoever sent the request. `Forwarded` (RFC 7239) is not read: a proxy that writes one
    of the two headers passes on the other as the client sent it.
    """

    def __init__(self, trusted_proxies: str | None = None) -> None:
        self._trusted = [ip_network(text) for text in listed(trusted_proxies)]

    def name(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The client's name.

        peer: the other end of the connection, an address as in ASGI's scope or as gRPC writes it. headers:
        names in lower case.
        """
        address = _address(peer)
        if address is None:
            return peer
        if self._is_trusted(address):
            address = self._forwarded(address, headers)
        return _name(address)

    def _forwarded(self, address: Address, headers: Iterable[tuple[bytes, bytes]]) -> Address:
        written = b",".join(value for name, value in headers if name == b"x-forwarded-for")
        for hop in reversed(written.decode("latin-1").split(",")):
            parsed = _address(hop)
            if parsed is None:  # not the work of a proxy: the last hop that is known counts
                break
            address = parsed
            if not self._is_trusted(address):
                break
        return address

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _address(text: str) -> Address | None:
    """The address that `text` is; None where it is none."""
    return _parsed(text.strip()) if len(text) <= _LONGEST else None


@lru_cache(4096)
def _parsed(text: str) -> Address | None:
    """As it stands in ASGI, in `X-Forwarded-For` (`192.0.2.1:80`, `[2001:db8::1]`) or gRPC (`ipv4:...`)."""
    text = unquote(text).removeprefix("ipv4:").removeprefix("ipv6:")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


@lru_cache(4096)
def _name(address: Address) -> str:
    """A network of 64 bits for IPv6, of which a client chooses the rest of its address as it likes."""
    if isinstance(address, IPv6Address) and not address.is_loopback:
        return str(IPv6Network((int(address), 64), strict=False))
    return str(address)
