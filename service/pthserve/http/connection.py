"""Connection: uvicorn's, with bounds on what a client may do before its request has a body."""

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pthserve.metrics import REQUESTS

HEAD_SECONDS = 10.0
"""From a connection's first moment, or from a request's first byte, to the end of its headers."""
HEAD_BYTES = 64 * 2**10
"""Request line and headers, about."""


class Connection(HttpToolsProtocol):
    """A connection whose client may be neither slow nor long-winded with its headers.

    uvicorn bounds only how long a connection may be idle between two requests.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the client its time for the first request."""
        super().connection_made(transport)
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._be_content()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request."""
        if self._in_head:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self._refuse(431, f"the request's headers are larger than {HEAD_BYTES} bytes")
                return
        super().data_received(data)
        answered = self.cycle is None or self.cycle.response_complete
        if answered and self._patience is None and not self.transport.is_closing():
            self._be_patient()  # for the rest of a body that nobody reads, or for empty lines

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head, self._head = True, 0
        if self._patience is None:
            self._be_patient()

    def on_url(self, url: bytes) -> None:
        """A piece of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The last header: from here on the app bounds what the client may do."""
        self._in_head = False
        self._be_content()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """The answer is out; the rest of a body that nobody read may still come, but not for ever."""
        super().on_response_complete()
        if self.cycle.more_body and self._patience is None and not self.transport.is_closing():
            self._be_patient()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Tell a client that what it sent cannot be parsed."""
        if self._head > HEAD_BYTES:
            self._refuse(431, f"the request's headers are larger than {HEAD_BYTES} bytes")
        else:
            self._refuse(400, "this is not an HTTP request that can be parsed")

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > HEAD_BYTES:
            raise ValueError  # the parser passes it on as its own error

    def _be_patient(self) -> None:
        self._patience = self.loop.call_later(HEAD_SECONDS, self._lose_patience)

    def _be_content(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._patience = None
        if self._in_head:
            self._refuse(408, f"the request's headers did not arrive within {HEAD_SECONDS:.0f} seconds")
        else:
            self.transport.close()

    def _refuse(self, code: int, message: str) -> None:
        """Answer without the app, which never saw the request, and hang up."""
        REQUESTS.labels("unparsed", code).inc()
        body = orjson.dumps({"error": message})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[code] + head % len(body) + body)
        self.transport.close()
