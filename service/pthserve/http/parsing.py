"""Parsing: parse bytes as HTTP/1.1 requests, one request at a time.

The parser is httptools. It cannot stop between two requests in one piece of input. So each piece ends where a
request may end: after an empty line, or after as many bytes as Content-Length states.
"""

from dataclasses import dataclass
from urllib.parse import unquote

import httptools

HEAD_BYTES = 64 * 2**10
"""Maximum size of a request line with its headers."""
MAX_HEADERS = 128
"""Maximum number of headers of a request."""
CHUNK_OVERHEAD = 8
"""Bytes of chunk sizes, extensions and trailers that a chunked body may have for each of its own bytes, in
addition to HEAD_BYTES."""
_EMPTY_LINE = b"\r\n\r\n"


class Refused(Exception):
    """A request that must be answered with the status `code` and `message`, without the app."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(slots=True)
class Head:
    """A request without its body.

    Attributes:
        headers: The headers, with names in lower case.
        keep_alive: Whether the client wants to keep the connection open.
        length: The value of Content-Length; 0 if it is missing.
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

    Attributes:
        begun: Whether anything of the current request has arrived; empty lines before it do not count.
        head: The head of the current request, once it is complete.
        body: The bytes of the body that have arrived and that the app has not received yet.
        complete: Whether all of the request has arrived; `next` must then be called before `feed`.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self.body = bytearray()
        self.next()

    def next(self) -> None:
        """Reset for the next request."""
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
        """Parse `data` from `start` to the next place where a request may end, and return that index.

        Bytes that may be the start of an empty line are left for the next call.

        Raises:
            Refused: The request is malformed or too large.
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
        empty_line = data.find(_EMPTY_LINE, start)
        if empty_line >= 0:
            return empty_line + len(_EMPTY_LINE)
        for size in (3, 2, 1):
            if data.endswith(_EMPTY_LINE[:size], start):
                return len(data) - size
        return len(data)

    def _ignore_upgrade(self) -> None:
        """Parse the head again without its Upgrade header, so that the body is parsed as HTTP/1.1."""
        head = self._parsed
        assert head is not None
        if head.method == "CONNECT":
            raise Refused(400, "CONNECT is for proxies, and this service is not a proxy")
        lines = [b"%s %s HTTP/%s" % (head.method.encode(), self._url, head.version.encode())]
        lines += [b"%s: %s" % header for header in self._headers if header[0] != b"upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._headers, self._parsed, self.complete = b"", [], None, False
        self._parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    # Called by httptools.

    def on_message_begin(self) -> None:
        """Start a request. A second one in a piece can only be HTTP/0.9, which has no empty line."""
        if self.complete:
            raise ValueError
        self.begun = True

    def on_url(self, url: bytes) -> None:
        """Add a piece of the request target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Those in a trailer are dropped: they arrive after the request was checked."""
        if self._parsed is None:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Keep the head, at the empty line after the headers."""
        parser = self._parser
        method, version = parser.get_method().decode("ascii"), parser.get_http_version()
        self._parsed = Head(method, version, self._headers, parser.should_keep_alive())

    def on_body(self, body: bytes) -> None:
        """Add a piece of the body."""
        self.body += body
        if self._rest:
            self._rest -= len(body)
        else:
            self._overhead -= len(body) * (1 + CHUNK_OVERHEAD)

    def on_message_complete(self) -> None:
        """Record the end of the request."""
        self.complete = True


def _checked(head: Head, target: bytes) -> Head:
    """Return `head` with the path and length from its target and headers; raises Refused if ambiguous."""
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
        head.length = int(lengths[0])  # the parser has refused anything but one number
    try:
        url = httptools.parse_url(target)
        head.raw_path = url.path or b"/"
        head.path = unquote(head.raw_path.decode("ascii"))
    except (httptools.HttpParserError, UnicodeDecodeError):
        raise Refused(400, "the request target is not a path such as /predict") from None
    head.query = url.query or b""
    return head
