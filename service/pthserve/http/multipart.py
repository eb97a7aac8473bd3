"""Multipart: the parts of a form with certain names, from a body in memory.

The size of the body is already limited, and its images stay in memory anyway. So it is searched as a whole,
with a few calls per part; a parser that is fed piece by piece needs a few dozen.
"""

import re
from collections.abc import Collection, Iterator

from pthserve.errors import MalformedRequest, TooLarge

MAX_PARTS = 256
MAX_HEADERS = 16
"""Maximum number of headers of a part."""
HEADER_BYTES = 4096
"""Maximum size of all headers of a part."""
BOUNDARY_BYTES = 70
"""Maximum size of the boundary: RFC 2046, 5.1.1."""
_HEADER = re.compile(rb"([!#-'*+.^-z|~A-Z0-9-]+):[ \t]*([^\r\n]*)")
"""A field line of RFC 9110, 5: its name is a token."""
_PARAMETER = re.compile(rb';[ \t]*([^ \t=;]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^; \t]*))')
"""A parameter of RFC 9110, 5.6.6, whose value may be quoted."""


def parts_named(names: Collection[bytes], body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of each part of the form `body` that has one of these `names`.

    Raises:
        MalformedRequest: The form cannot be parsed.
        TooLarge: It has too many parts.
    """
    for disposition, start, end in _parts(body, boundary):
        name = parameter(disposition, b"name")
        if name in names:
            yield name, body[start:end]


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the Content-Disposition of each part, and start and end of its content in `body`."""
    if len(boundary) > BOUNDARY_BYTES:
        raise _unparsable(f"its boundary has more than {BOUNDARY_BYTES} bytes")
    delimiter = b"\r\n--" + boundary
    # Text may precede the first boundary, which then must start a line (RFC 2046, 5.1.1).
    if body.startswith(delimiter[2:]):
        at = len(delimiter) - 2
    elif (preamble := body.find(delimiter)) >= 0:
        at = preamble + len(delimiter)
    else:
        raise _unparsable("its boundary is not in it") if body else _cut_off()
    parts = 0
    while not body.startswith(b"--", at):
        line_end = body.find(b"\r\n", at)
        if line_end < 0:
            raise _cut_off()
        if body[at:line_end].strip(b" \t"):  # spaces and tabs may follow a boundary
            raise _unparsable("something follows a boundary")
        parts += 1
        if parts > MAX_PARTS:
            raise TooLarge(f"the multipart body has more than {MAX_PARTS} parts")
        header_end = body.find(b"\r\n\r\n", line_end, line_end + HEADER_BYTES)
        if header_end < 0:
            raise (
                _unparsable("a part's headers are too long")
                if len(body) > line_end + HEADER_BYTES
                else _cut_off()
            )
        disposition = _disposition(body[line_end + 2 : header_end])
        end = body.find(delimiter, header_end + 2)
        if end < 0:
            raise _cut_off()
        yield disposition, header_end + 4, end
        at = end + len(delimiter)


def _disposition(headers: bytes) -> bytes:
    """Return the value of Content-Disposition in the `headers` of a part; empty if it is missing."""
    disposition = b""
    lines = headers.split(b"\r\n") if headers else []
    if len(lines) > MAX_HEADERS:
        raise _unparsable("a part has too many headers")
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise _unparsable("a part has a line that is not a header")
        if header[1].lower() == b"content-disposition":
            disposition = header[2]
    return disposition


def parameter(header: bytes, name: bytes) -> bytes:
    """Return the parameter `name` of the value `header` of a header field; empty if it is missing."""
    for parameter in _PARAMETER.finditer(header):
        if parameter[1].lower() == name:
            plain, quoted = parameter[3], parameter[2]
            if quoted is None:
                return bytes(plain)
            return bytes(re.sub(rb"\\(.)", rb"\1", quoted) if b"\\" in quoted else quoted)
    return b""


def _unparsable(reason: str) -> MalformedRequest:
    return MalformedRequest(f"the multipart body cannot be parsed: {reason}")


def _cut_off() -> MalformedRequest:
    return MalformedRequest("the multipart body ends before the closing boundary")
