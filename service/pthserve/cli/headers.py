"""Headers: the HTTP header option that every command which calls a server shares.

A value is often a secret, such as an API key. So no message repeats a value, nor text that may hold one.
"""

import re
from collections.abc import Sequence

import rich_click as click

Header = tuple[bytes, bytes]
"""Name and value as they are sent."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OWN = frozenset(
    ("accept-encoding", "connection", "content-length", "content-type", "range", "transfer-encoding")
)
"""Set by the commands themselves: a second value would break the request."""


def header_value(text: str) -> bytes:
    """The value of a header as it is sent, UTF-8 without the spaces around it; raises BadParameter."""
    value = text.strip()
    if not value:
        raise click.BadParameter("the value is empty.")
    if _CONTROL.search(value):
        raise click.BadParameter("the value must be one line without control characters.")
    return value.encode(errors="surrogateescape")


def header(text: str) -> Header:
    """The header written as `Name: value`; raises BadParameter."""
    name, colon, value = text.partition(":")
    name = name.strip()
    if not colon or not _NAME.fullmatch(name):
        raise click.BadParameter("must be `Name: value`, such as `X-API-Key: KEY`.")
    if name.lower() in _OWN:
        raise click.BadParameter(f"{name} cannot be chosen; pthserve sets it.")
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
"""Gives a command `headers`, a tuple of `Header`."""


def has(headers: Sequence[Header], name: bytes) -> bool:
    """Whether one of `headers` is called `name`, in whatever case."""
    return any(known.lower() == name.lower() for known, _ in headers)
