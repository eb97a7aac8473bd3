"""Parsing: bytes to requests of HTTP/1.1, one request at a time.

The parser is httptools. It cannot be stopped between two requests of one piece. So it gets pieces that end
where a request may end: after an empty line, or after as many bytes as Content-Length says.
"""

from dataclasses import dataclass
from urllib.parse import unquote

import httptools

HEAD_BYTES = 64 * 2**10
"""Of a request line and its headers."""
MAX_HEADERS = 128
"""Of a request."""
CHUNK_OVERHEAD = 8
"""Bytes of chunk sizes, extensions and trailers for each byte of a chunked body, beside HEAD_BYTES."""
_EMPTY_LINE = b"\r\n\r\n"


class Refused(Exception):
    """A request that is answered with `code` and `message` before the app sees it, or instead of its rest."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(slots=True)
class Head:
    """A request without its body. Names of headers are in lower case.

    keep_alive: whether the client wants the connection kept. length: Content-Length; 0 without one.
    """

    method: str
    version: str
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool
    length: int = 0
    path: str = ""
    raw_path: bytes = b""
    query: bytes = b""


class Parser:
    """Parses the requests of one connection.

    begun: whether anything of the current request has come; empty lines before it do not count.
    head: of the current request, once it is whole. body: what came of its body and was not taken yet.
    complete: whether the request has come to its end; then `next` must be called before `feed`.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self.body = bytearray()
        self.next()

    def next(self) -> None:
        """Get ready for the next request."""
        self.begun = False
        self.head: Head | None = None
        self.complete = False
        self.body.clear()
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._parsed: Head | None = None
        self._rest = 0  # of a body with Content-Length
        self._overhead = 0  # of a chunked body

    def feed(self, data: bytes, start: int) -> int:
        """Parse `data` from `start` to the next place where a request may end; returns that place.

        Bytes that may be the beginning of an empty line are left for the next call. Raises Refused.
        """
        end = self._piece(data, start)
        if end == start:
            return end
        if self.head is None:
            self._head_bytes += end - start
            if self._head_bytes > HEAD_BYTES:
                raise Refused(431, f"the request's headers are larger than {HEAD_BYTES} bytes")
        elif not self._rest:
            self._overhead += end - start
        try:
            self._parser.feed_data(memoryview(data)[start:end])
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        except httptools.HttpParserError:
            raise Refused(400, "this is not an HTTP request that can be parsed") from None
        self._check()
        return end

    def _check(self) -> None:
        if self.head is not None:
            if self._overhead > HEAD_BYTES:
                raise Refused(400, "the request's chunks are too small, or its trailers too large")
            return
        if len(self._headers) > MAX_HEADERS:
            raise Refused(431, f"the request has more than {MAX_HEADERS} headers")
        if self._parsed is not None:
            self.head = _checked(self._parsed, self._url)
            self._rest = self.head.length

    def _piece(self, data: bytes, start: int) -> int:
        if self._rest:
            return min(start + self._rest, len(data))
        found = data.find(_EMPTY_LINE, start)
        if found >= 0:
            return found + len(_EMPTY_LINE)
        for size in (3, 2, 1):
            if data.endswith(_EMPTY_LINE[:size], start):
                return len(data) - size
        return len(data)

    def _ignore_upgrade(self) -> None:
        """Parse the head again, without the offer to speak another protocol: its body follows in this one."""
        head = self._parsed
        assert head is not None
        if head.method == "CONNECT":
            raise Refused(400, "CONNECT is for proxies, and this service is none")
        lines = [b"%s %s HTTP/%s" % (head.method.encode(), self._url, head.version.encode())]
        lines += [b"%s: %s" % header for header in self._headers if header[0] != b"upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._headers, self._parsed, self.complete = b"", [], None, False
        self._parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    # What httptools calls.

    def on_message_begin(self) -> None:
        """The first byte of a request. Only HTTP/0.9, without empty lines, has a second one in a piece."""
        if self.complete:
            raise ValueError
        self.begun = True

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those of a trailer are dropped, for nobody checked them when the request was let in."""
        if self._parsed is None:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The empty line after the headers."""
        parser = self._parser
        method, version = parser.get_method().decode("ascii"), parser.get_http_version()
        self._parsed = Head(method, version, self._headers, parser.should_keep_alive())

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self.body += body
        if self._rest:
            self._rest -= len(body)
        else:
            self._overhead -= len(body) * (1 + CHUNK_OVERHEAD)

    def on_message_complete(self) -> None:
        """The end of the request."""
        self.complete = True


def _checked(head: Head, target: bytes) -> Head:
    """`head` with what its target and its headers say; raises Refused where they say it in no certain way."""
    if head.version not in ("1.0", "1.1"):
        raise Refused(505, "the service speaks HTTP/1.1 and HTTP/1.0")
    values: dict[bytes, list[bytes]] = {}
    for name, value in head.headers:
        values.setdefault(name, []).append(value)
    hosts = len(values.get(b"host", ()))
    if hosts > 1 or (not hosts and head.version == "1.1"):
        raise Refused(400, f"the request has {hosts} Host headers; it must have one")
    if coding := values.get(b"transfer-encoding"):
        if head.version == "1.0":
            raise Refused(400, "an HTTP/1.0 request has no Transfer-Encoding; send Content-Length")
        if [value.strip().lower() for value in coding] != [b"chunked"]:
            raise Refused(501, "the only Transfer-Encoding that the service reads is `chunked`")
    if lengths := values.get(b"content-length"):
        head.length = int(lengths[0])  # the parser refused what is no number, and a second one
    try:
        url = httptools.parse_url(target)
        head.raw_path = url.path or b"/"
        head.path = unquote(head.raw_path.decode("ascii"))
    except (httptools.HttpParserError, UnicodeDecodeError):
        raise Refused(400, "the request's target is no path such as /predict") from None
    head.query = url.query or b""
    return head
