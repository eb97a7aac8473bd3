"""Addresses: how an address is printed, so that no secret in it is, and which of them are this machine."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>`{}]+")


def printable(url: str) -> str:
    """`url` for a message or a log: scheme, host, port and path.

    User name, password, query string and fragment are left out: each may hold a secret. An address that
    cannot be parsed is not repeated at all, since nobody can say which part of it is the password.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return "the given address"
    host = parts.hostname
    if not host:
        return "the given address"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"


def is_address(source: str) -> bool:
    """Whether `source` names a place by its URL, and not a path."""
    return _SCHEME.match(source) is not None


def shown(source: str) -> str:
    """A path or an address for a message: the path as it is, the address as `printable` writes it."""
    return printable(source) if is_address(source) else source


def redacted(text: str) -> str:
    """`text`, such as the message of a library, with each address in it as `printable` writes it."""
    return _ADDRESS.sub(lambda found: printable(found[0]), text)


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine, so that nobody else can read or change what is sent."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
