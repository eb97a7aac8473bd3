"""Connection: HTTP/1.1 over a socket, with limits on what a client may send, hold and leave unread.

A request is parsed only after the response to the previous one is complete and the kernel has accepted it.
Until then nothing is read, so a connection holds one request, one response and one read buffer, however much
a client sends. uvicorn accepts the connections and shuts them down; only its `Config` and `ServerState` are
used here.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import orjson
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.server import ServerState

from pthserve.http.exchange import STATUS_LINES, Exchange
from pthserve.http.parsing import Head, Parser, Refused
from pthserve.metrics import REQUESTS

HEAD_SECONDS = 10.0
"""Maximum time from the start of a connection, or the first byte of a request, to the end of its headers."""
ANSWER_SECONDS = 30.0
"""Maximum time for a client to read a response, once the kernel's send buffer is full."""
LINGER_SECONDS = 2.0
"""Time for a client that is still sending to read its last response: closing at once would reset the
connection."""
DISCARD_BYTES = 64 * 2**20
"""Maximum size of the rest of a body that is discarded after the response; beyond it the connection is
aborted."""
READ_BYTES = 64 * 2**10
"""Size of the read buffer."""
BODY_BYTES = 64 * 2**10
"""Size of the body that waits for the app, from which reading stops."""
PROBE_SECONDS = 0.25
"""Time after a client has shut down its side until the first check whether it still reads."""
_TCP_CLOSE = 7
"""The state of a connection that was reset, in the first byte of TCP_INFO."""


class Connection(asyncio.BufferedProtocol):
    """The connection of a client.

    Args:
        buffer: The read buffer; all connections of one event loop may share it.
        root_path: The prefix that a proxy adds to paths, as in ASGI.
        config: uvicorn's configuration, with the app and the keep-alive timeout.
        server_state: uvicorn's open connections, running tasks and default headers.
        app_state: The state that each request starts with.
    """

    def __init__(
        self,
        buffer: bytearray,
        root_path: str,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._buffer = buffer
        self._app = config.loaded_app
        self._server = server_state
        self._app_state = app_state
        self._keep_alive_seconds = config.timeout_keep_alive
        self._root_path = root_path
        self._loop = _loop or asyncio.get_running_loop()
        self.parser = Parser()
        self.writable = asyncio.Event()
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._exchange: Exchange | None = None
        self._unparsed = b""
        self._parsed_to = 0  # in `_unparsed`
        self._discarded = 0
        self._reading = True
        self._input_ended = False
        self._lingering = False
        self._idle = False  # between two requests
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every response, such as its date."""
        return self._server.default_headers

    # Called by the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of the first request."""
        self._server.connections.add(self)  # type: ignore[arg-type]
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # report when the kernel's send buffer is full
        self.writable.set()
        self._client = (transport.get_extra_info("peername") or ("", 0))[:2]
        self._address = (transport.get_extra_info("sockname") or ("", 0))[:2]
        self._start_timer(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Stop the timers, and end the request that is in progress."""
        self._server.connections.discard(self)
        for timer in (self._timer, self._write_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        self.writable.set()
        if self._exchange is not None and not self._exchange.answered:
            self._exchange.disconnect()
        self._unparsed = b""

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002
        """Return the read buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Process the `nbytes` that were read."""
        if self._lingering:
            self._discard(nbytes)
            return
        self._unparsed = self._unparsed[self._parsed_to :] + self._buffer[:nbytes]
        self._parsed_to = 0
        self.proceed()

    def eof_received(self) -> bool:
        """Handle that the client has shut down its side. Only a write shows whether it still reads."""
        self._input_ended = True
        exchange = self._exchange
        if self._lingering or (exchange is None and not self.parser.begun):
            return False
        if exchange is None or not self.parser.complete:
            self._refuse(Refused(400, "the connection was shut down before the request was complete"))
            return False
        if exchange.head.version == "1.0":  # it has no interim response, which the probe needs
            return False
        exchange.keep_alive = False
        self._probe(exchange, PROBE_SECONDS)
        return True

    def pause_writing(self) -> None:
        """Start the time limit for reading the response: the kernel's send buffer is full."""
        self.writable.clear()
        self._write_timer = self._loop.call_later(ANSWER_SECONDS, self._transport.abort)

    def resume_writing(self) -> None:
        """Continue: the kernel has accepted everything."""
        self.writable.set()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self.proceed()

    # Called by uvicorn.

    def shutdown(self) -> None:
        """Close the connection: at once, or after the response that is in progress."""
        if self._exchange is None or self._exchange.answered:
            self._transport.close()
        else:
            self._exchange.keep_alive = False

    # Called by an exchange.

    def write(self, *pieces: bytes) -> None:
        """Write to the client, unless the connection has ended."""
        if not self._lingering and not self._transport.is_closing():
            self._transport.writelines(pieces)

    def on_answered(self, exchange: Exchange) -> None:
        """Handle that the response is complete: the next request may be parsed."""
        self._server.total_requests += 1
        if self._transport.is_closing():
            return
        if self.parser.complete:
            self._end_exchange(exchange)
        elif exchange.keep_alive:
            self._discarded = len(self.parser.body)
            self.parser.body.clear()
            self._start_timer(HEAD_SECONDS)
        else:
            self._hang_up()
        self.proceed()

    def fail(self, exchange: Exchange) -> None:
        """Handle that the app ended without a complete response."""
        if not exchange.started:
            self._write_problem(500, "internal error")
        self._hang_up()

    def proceed(self) -> None:
        """Parse as much of the unparsed bytes as is allowed now, then start or stop reading as needed."""
        while self._parsed_to < len(self._unparsed) and self._may_parse():
            if self._idle:
                self._idle = False
                self._start_timer(HEAD_SECONDS)
            try:
                end = self.parser.feed(self._unparsed, self._parsed_to)
            except Refused as refused:
                self._refuse(refused)
                return
            size, self._parsed_to = end - self._parsed_to, end
            if size == 0:
                break
            if self._exchange is not None:
                self._take_body(self._exchange, size)
            elif self.parser.head is not None:
                self._begin_exchange(self.parser.head)
        self._read_on()

    # Internal.

    def _may_parse(self) -> bool:
        if self._lingering or self._transport.is_closing():
            return False
        if self._exchange is None:
            return self.writable.is_set()
        return not self.parser.complete and not self._body_full()

    def _body_full(self) -> bool:
        exchange = self._exchange
        return exchange is not None and not exchange.answered and len(self.parser.body) >= BODY_BYTES

    def _read_on(self) -> None:
        """Start or stop reading.

        It reads if new bytes could be parsed, and also if no bytes wait, to notice when the client leaves.
        """
        if self._input_ended or self._transport.is_closing():
            return
        waiting = self._parsed_to < len(self._unparsed)
        wanted = self._lingering or self._may_parse() or not (waiting or self._body_full())
        if wanted != self._reading:
            self._reading = wanted
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    def _begin_exchange(self, head: Head) -> None:
        self._stop_timer()
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "method": head.method,
            "scheme": "http",
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "root_path": self._root_path,
            "headers": head.headers,
            "client": self._client,
            "server": self._address,
            "state": self._app_state.copy(),
        }
        self._exchange = exchange = Exchange(self, head, scope)
        if head.length > DISCARD_BYTES:
            exchange.keep_alive = False
        task = self._loop.create_task(exchange.run(self._app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def _take_body(self, exchange: Exchange, size: int) -> None:
        """Process `size` bytes of the request that were parsed after its head."""
        if not exchange.answered:
            exchange.notify()
            return
        self.parser.body.clear()
        self._discard(size)
        if self.parser.complete and not self._transport.is_closing():
            self._end_exchange(exchange)

    def _end_exchange(self, exchange: Exchange) -> None:
        self._exchange = None
        self.parser.next()
        if exchange.keep_alive and not self._input_ended:
            self._idle = True
            self._start_timer(self._keep_alive_seconds)
        else:
            self._hang_up()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > DISCARD_BYTES:
            self._transport.abort()

    def _refuse(self, refused: Refused) -> None:
        """Send an error response without the app, which has not received the whole request, and hang up."""
        exchange = self._exchange
        if exchange is None:
            REQUESTS.labels("unparsed", refused.code).inc()
        if exchange is None or not exchange.started:
            self._write_problem(refused.code, refused.message)
        if exchange is not None and not exchange.answered:
            exchange.disconnect()
        self._hang_up()

    def _write_problem(self, code: int, message: str) -> None:
        body = orjson.dumps({"error": message})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.write(STATUS_LINES[code], head % len(body), body)

    def _hang_up(self) -> None:
        """Write nothing more, and close after the client has closed or LINGER_SECONDS have passed."""
        if self._transport.is_closing() or self._lingering:
            return
        clean = self._exchange is None and self._parsed_to == len(self._unparsed) and not self.parser.begun
        self._unparsed, self._parsed_to = b"", 0
        if clean or self._input_ended:
            self._transport.close()
            return
        self._lingering = True
        self._discarded = 0
        self._transport.write_eof()
        self._start_timer(LINGER_SECONDS)
        self._read_on()

    def _probe(self, exchange: Exchange, seconds: float) -> None:
        """Check again and again whether a client that has shut down its side has left.

        If it has, an interim response makes its kernel reset the connection.
        """

        def check() -> None:
            info = self._transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            if info[0] == _TCP_CLOSE:
                self._transport.abort()
                return
            if not exchange.started:
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._probe(exchange, 2 * seconds)

        self._probe_timer = self._loop.call_later(seconds, check)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        if self._lingering or not self.writable.is_set():
            self._transport.abort()
        elif self._exchange is None and self.parser.begun:
            seconds = f"{HEAD_SECONDS:.0f} seconds"
            self._refuse(Refused(408, f"the request's headers did not arrive within {seconds}"))
        else:
            self._transport.close()


def factory(root_path: str = "") -> Callable[..., Connection]:
    """Return a factory of the connections of one server, which share a read buffer; see `Connection`."""
    buffer = bytearray(READ_BYTES)

    def make(**arguments: Any) -> Connection:
        return Connection(buffer, root_path, **arguments)

    return make
