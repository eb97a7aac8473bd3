"""Headers: the --header option, which all commands that call a server share.

A value is often a secret, such as an API key, so no message repeats a value or text that may contain one.
"""

import re
from collections.abc import Sequence

import rich_click as click

Header = tuple[bytes, bytes]
"""Name and value, as they are sent."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OWN = frozenset(
    ("accept-encoding", "connection", "content-length", "content-type", "range", "transfer-encoding")
)
"""Set by the commands: a second value would break the request."""


def header_value(text: str) -> bytes:
    """Convert the value of a header to the bytes that are sent: UTF-8 without surrounding spaces."""
    value = text.strip()
    if not value:
        raise click.BadParameter("the value is empty.")
    if _CONTROL.search(value):
        raise click.BadParameter("the value must be one line without control characters.")
    return value.encode(errors="surrogateescape")


def header(text: str) -> Header:
    """Parse a header written as `Name: value`."""
    name, colon, value = text.partition(":")
    name = name.strip()
    if not colon or not _NAME.fullmatch(name):
        raise click.BadParameter("must be `Name: value`, such as `X-API-Key: KEY`.")
    if name.lower() in _OWN:
        raise click.BadParameter(f"{name} cannot be set; pthserve sets it.")
    return name.encode(), header_value(value)


HEADERS = click.option(
    "--header",
    "-H",
    "headers",
    type=header,
    metavar="NAME: VALUE",
    multiple=True,
    help="HTTP header to send with each request, such as `X-API-Key: KEY`. Can be given several times.",
)
"""Adds the parameter `headers`, a tuple of `Header`, to a command."""


def has(headers: Sequence[Header], name: bytes) -> bool:
    """Whether one of `headers` has this name, ignoring case."""
    return any(known.lower() == name.lower() for known, _ in headers)
