"""Clients: the address of the client of a request, over HTTP and gRPC, directly or through proxies."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import unquote

from pthserve.settings import listed

Address = IPv4Address | IPv6Address
_LONGEST = 100
"""Maximum number of characters of an address with port and brackets; longer text is not parsed."""


class Clients:
    """Names clients by address.

    Only the rightmost address of `X-Forwarded-For` that is not a trusted proxy is used: the client can write
    anything to the left of it. `Forwarded` (RFC 7239) is not read: a proxy that sets one of the two headers
    passes on the other as the client sent it.
    """

    def __init__(self, trusted_proxies: str | None = None) -> None:
        self._trusted = [ip_network(text) for text in listed(trusted_proxies)]

    def name(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the name of a client.

        Args:
            peer: The address of the other end of the connection, as in ASGI or as gRPC writes it.
            headers: The headers of the request, with names in lower case.
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
            if parsed is None:  # not written by a proxy: the last valid hop counts
                break
            address = parsed
            if not self._is_trusted(address):
                break
        return address

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _address(text: str) -> Address | None:
    """Parse an address; None if `text` is not one."""
    return _parsed(text.strip()) if len(text) <= _LONGEST else None


@lru_cache(4096)
def _parsed(text: str) -> Address | None:
    """Parse an address of ASGI, `X-Forwarded-For` (`192.0.2.1:80`, `[2001:db8::1]`) or gRPC (`ipv4:...`)."""
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
    """Return the address, or for IPv6 its network of 64 bits: a client is free to choose the rest."""
    if isinstance(address, IPv6Address) and not address.is_loopback:
        return str(IPv6Network((int(address), 64), strict=False))
    return str(address)
