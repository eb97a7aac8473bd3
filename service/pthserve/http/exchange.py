"""Exchange: one request and its response, as an ASGI app receives and sends them."""

import asyncio
import logging
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from pthserve.http.parsing import Head, Parser

log = logging.getLogger(__name__)

LARGE = 2**20
"""Size in bytes of a piece of a response from which `Exchange.send` returns only after the kernel has it."""
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
STATUS_LINES = {
    status: f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode("ascii") for status in range(200, 600)
}
_NOT_IN_NAME = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_NOT_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Bytes that end a header, or that a proxy might interpret as its end."""


class Client(Protocol):
    """The part of a connection that an exchange uses."""

    parser: Parser
    writable: asyncio.Event
    """Set while the kernel accepts what is written."""

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every response."""

    def write(self, *pieces: bytes) -> None:
        """Write to the client, if it is still connected."""

    def proceed(self) -> None:
        """Parse more: the app has received some of the body."""

    def on_answered(self, exchange: "Exchange") -> None:
        """Handle that the response is complete."""

    def fail(self, exchange: "Exchange") -> None:
        """Handle that the app ended without a complete response."""


class Exchange:
    """A request on a connection and its response.

    Attributes:
        head: The request without its body.
        keep_alive: Whether the connection stays open after the response.
        started: Whether the head of the response is written.
        answered: Whether all of the response is written.
        disconnected: Whether the client no longer waits for the response.
    """

    def __init__(self, connection: Client, head: Head, scope: Scope) -> None:
        self._connection = connection
        self._scope = scope
        self.head = head
        self.keep_alive = head.keep_alive
        self.started = False
        self.answered = False
        self.disconnected = False
        self._changed = asyncio.Event()
        self._ended = False  # the app has received the end of the body
        self._continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in head.headers
        )
        self._start: Message | None = None
        self._chunked = False
        self._left: int | None = None
        """Bytes of the response body that the app must still send, if that is known."""

    async def run(self, app: ASGIApp) -> None:
        """Run `app` for this request."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            log.exception("the app failed")
        finally:
            if not self.answered and not self.disconnected:
                self._connection.fail(self)

    def notify(self) -> None:
        """Wake `receive`: there is more of the body, or the client has left."""
        self._changed.set()

    def disconnect(self) -> None:
        """Record that the client no longer waits."""
        self.disconnected = True
        self.notify()

    async def receive(self) -> Message:
        """Return the next piece of the body, or a disconnect after the response or if the client has left."""
        if self._continue and not self.started and not self.disconnected:
            self._continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        parser = self._connection.parser
        while not (self.disconnected or self.answered):
            if parser.body or (parser.complete and not self._ended):
                body, self._ended = bytes(parser.body), parser.complete
                parser.body.clear()
                self._connection.proceed()
                return {"type": "http.request", "body": body, "more_body": not self._ended}
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Write a piece of the response; the head is written together with the first piece of the body."""
        await self._connection.writable.wait()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        assert self._start is not None
        body: bytes = message.get("body", b"")
        last = not message.get("more_body", False)
        head = b"" if self.started else self._answer_head(self._start)
        pieces = (head, *self._framed(body, last))
        self.started = True
        self._connection.write(*filter(None, pieces))
        if last:
            self.answered = True
            self.notify()
            self._connection.on_answered(self)
        if len(body) >= LARGE:
            await self._connection.writable.wait()  # `Limits` counts its bytes until then

    def _framed(self, body: bytes, last: bool) -> tuple[bytes, ...]:
        if self.head.method == "HEAD":
            return ()
        if self._chunked:
            chunk = (b"%x\r\n" % len(body), body, b"\r\n") if body else ()
            return (*chunk, b"0\r\n\r\n") if last else chunk
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (last and self._left):
                raise RuntimeError("the length of the response body differs from its Content-Length")
        return (body,)

    def _answer_head(self, start: Message) -> bytes:
        status = start["status"]
        lines = [STATUS_LINES[status]]
        length: int | None = None
        closes = False
        for name, value in (*self._connection.default_headers, *start.get("headers", ())):
            if _NOT_IN_NAME.search(name) or _NOT_IN_VALUE.search(value):
                raise RuntimeError(f"the response has an invalid header: {name!r}")
            if name == b"content-length":
                length = int(value)
            elif name == b"connection" and value.lower() == b"close":
                closes, self.keep_alive = True, False
            lines.append(b"%s: %s\r\n" % (name, value))
        if self._continue and not self._connection.parser.complete:
            self.keep_alive = False  # without the interim response, the client does not send the body
        lines.extend(self._framing(status, length))
        if not self.keep_alive and not closes:
            lines.append(b"connection: close\r\n")
        elif self.keep_alive and self.head.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _framing(self, status: int, length: int | None) -> Iterator[bytes]:
        """Choose how the end of the body is marked, and yield the header for it, if it needs one."""
        self._left = 0 if status in (204, 304) else length
        if self._left is None and self.head.version == "1.0":
            self.keep_alive = False  # the end of the connection marks the end of the body
        elif self._left is None:
            self._chunked = True
            yield b"transfer-encoding: chunked\r\n"
