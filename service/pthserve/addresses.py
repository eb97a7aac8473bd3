"""Addresses: how the address of a server is printed, so that no secret in it is."""

from urllib.parse import urlsplit


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
