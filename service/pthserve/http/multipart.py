"""Multipart: the image out of a request's body, in memory.

A body is bounded before it comes here, and its image is kept anyway; so it is read whole and then searched,
which takes a few calls, where a parser that is fed in pieces takes a few dozen for each part.
"""

import re
from collections.abc import Iterator

from starlette.requests import Request

from pthserve.errors import MalformedRequest, TooLarge

FIELD = "image"
MAX_PARTS = 16
MAX_HEADERS = 16
"""Of a part."""
HEADER_BYTES = 4096
"""All headers of a part."""
BOUNDARY_BYTES = 70
"""RFC 2046, 5.1.1."""
_WANTED = f"send it as the multipart field `{FIELD}`, or as the body with its content type, such as image/png"
_HEADER = re.compile(rb"([!#-'*+.^-z|~A-Z0-9-]+):[ \t]*([^\r\n]*)")
"""A field line of RFC 9110, 5: its name is a token."""
_PARAMETER = re.compile(rb';[ \t]*([^ \t=;]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^; \t]*))')
"""A parameter of RFC 9110, 5.6.6, whose value may be quoted."""


async def read_image(request: Request) -> bytes:
    """The image file that `request` carries: its multipart field `image`, or its body.

    Raises MalformedRequest where there is none or more than one, and TooLarge for too many parts.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MalformedRequest("an image is taken as it is, without a Content-Encoding: its formats compress")
    content_type = request.headers.get("content-type", "").encode("latin-1")
    kind = content_type.partition(b";")[0].strip().lower()
    if kind.startswith(b"image/"):
        image = await request.body()
    elif kind == b"multipart/form-data":
        boundary = _parameter(content_type, b"boundary")
        if not boundary:
            raise MalformedRequest("the multipart content type names no boundary")
        image = _field(await request.body(), boundary)
    else:
        raise MalformedRequest(f"the request carries no image: {_WANTED}")
    if not image:
        raise MalformedRequest(f"the image is empty: {_WANTED}")
    return image


def _field(body: bytes, boundary: bytes) -> bytes:
    found: bytes | None = None
    for disposition, start, end in _parts(body, boundary):
        if _parameter(disposition, b"name") == FIELD.encode():
            if found is not None:
                raise MalformedRequest(
                    f"the request has more than one part called `{FIELD}`; send one a request"
                )
            found = body[start:end]
    if found is None:
        raise MalformedRequest(f"the request has no part called `{FIELD}`: {_WANTED}")
    return found


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The Content-Disposition of each part, and from where to where in `body` its content is."""
    if len(boundary) > BOUNDARY_BYTES:
        raise _unparsable(f"its boundary has more than {BOUNDARY_BYTES} bytes")
    delimiter = b"\r\n--" + boundary
    # Text may stand before the first boundary (RFC 2046, 5.1.1), which then begins a line.
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
        if body[at:line_end].strip(b" \t"):  # which a boundary's line may have at its end
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
    """The value of the header Content-Disposition among a part's `headers`."""
    found = b""
    lines = headers.split(b"\r\n") if headers else []
    if len(lines) > MAX_HEADERS:
        raise _unparsable("a part has too many headers")
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise _unparsable("a part has a header that is none")
        if header[1].lower() == b"content-disposition":
            found = header[2]
    return found


def _parameter(header: bytes, name: bytes) -> bytes:
    """The value of the parameter `name` in the value of a header; empty where there is none."""
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
    return MalformedRequest("the multipart body ends before its last boundary")
