"""Multipart: the image out of a request's body, in memory."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from pthserve.errors import MalformedRequest, TooLarge

FIELD = "image"
MAX_PARTS = 16
_WANTED = f"send it as the multipart field `{FIELD}`, or as the body with its content type, such as image/png"


async def read_image(request: Request) -> bytes:
    """The image file that `request` carries: its multipart field `image`, or its body.

    Raises MalformedRequest where there is none or more than one, and TooLarge for too many parts.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind.startswith(b"image/"):
        image = await request.body()
    elif kind == b"multipart/form-data":
        image = await _field(request, options.get(b"boundary", b""))
    else:
        raise MalformedRequest(f"the request carries no image: {_WANTED}")
    if not image:
        raise MalformedRequest(f"the image is empty: {_WANTED}")
    return image


async def _field(request: Request, boundary: bytes) -> bytes:
    if not boundary:
        raise MalformedRequest("the multipart content type names no boundary")
    form = _Form()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.part_begin,
                "on_part_data": form.part_data,
                "on_header_begin": form.header_begin,
                "on_header_field": form.header_field,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_headers_finished": form.headers_finished,
                "on_end": form.end,
            },
        )
        async for chunk in request.stream():
            parser.write(chunk)
    except FormParserError as error:
        raise MalformedRequest(f"the multipart body cannot be parsed: {error}") from error
    if not form.complete:
        raise MalformedRequest("the multipart body ends before its last boundary")
    if not form.found:
        raise MalformedRequest(f"the request has no part called `{FIELD}`: {_WANTED}")
    return b"".join(form.image)


class _Form:
    """Keeps the image and throws the other parts away. The parser may hand over each piece in pieces."""

    def __init__(self) -> None:
        self.image: list[bytes] = []
        self.found = False
        self.complete = False
        self._parts = 0
        self._keeping = False
        self._name = b""
        self._value = b""
        self._disposition = b""

    def part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise TooLarge(f"the multipart body has more than {MAX_PARTS} parts")
        self._disposition = b""
        self._keeping = False

    def header_begin(self) -> None:
        self._name = self._value = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") == FIELD.encode():
            if self.found:
                raise MalformedRequest(
                    f"the request has more than one part called `{FIELD}`; send one a request"
                )
            self.found = self._keeping = True

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._keeping:
            self.image.append(data[start:end])

    def end(self) -> None:
        self.complete = True
