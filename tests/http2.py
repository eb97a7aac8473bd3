"""HTTP/2 as it is on the wire, for gRPC clients that are not well-behaved: calls whose messages never end."""

import select
import socket
import struct
import time
from collections.abc import Callable

PATIENCE = 30.0
"""Seconds after which a condition that does not come is a failure."""

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = END_STREAM = 1
_END_HEADERS = 4
_INITIAL_WINDOW = 4
_FRAME = 2**14


def message(body: bytes, *, compressed: bool = False, size: int | None = None) -> bytes:
    """`body` as gRPC frames a message; size: what is said of its length."""
    return struct.pack(">BI", compressed, len(body) if size is None else size) + body


def until(condition: Callable[[], object], between: Callable[[], None] = lambda: time.sleep(0.01)) -> None:
    """Look at `condition` until it holds, with what is to be done `between`; fails where it does not come."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "the condition did not come"
        between()


class Calls:
    """Calls on one connection to `port`, none of which is answered to the letter.

    window: bytes of each response that the client takes. answered: the streams that a response has come on;
    ended: those that the server has closed; closed: whether it has closed the connection.
    """

    def __init__(self, port: int, window: int = 2**16) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._socket.setblocking(False)
        self._in = bytearray()
        self._out = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._left = {0: 65535}
        self._initial = 65535
        self._stream = -1
        self._unsent: dict[int, tuple[bytearray, bool]] = {}
        self.ended: set[int] = set()
        self.answered: set[int] = set()
        self.closed = False
        self._frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW, window))

    def call(
        self, path: str, body: bytes = b"", *, end: bool = True, headers: dict[str, str] | None = None
    ) -> int:
        """The stream of a new call of which `body` is sent, as much as the server lets; end: and no more."""
        self._stream += 2
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "x",
            "content-type": "application/grpc",
            "te": "trailers",
            **(headers or {}),
        }
        block = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in fields.items()
        )
        self._frame(HEADERS, _END_HEADERS | (END_STREAM if end and not body else 0), self._stream, block)
        self._left[self._stream] = self._initial
        if body:
            self._unsent[self._stream] = (bytearray(body), end)
        return self._stream

    def reset(self, stream: int) -> None:
        """Give a call up."""
        self._unsent.pop(stream, None)
        self._frame(RST_STREAM, 0, stream, struct.pack(">I", 8))

    def until(self, condition: Callable[[], object]) -> None:
        """Send and receive until `condition` holds; fails where it does not."""
        until(condition, lambda: self.pump(0.01))

    def unsent(self, stream: int) -> int:
        """Bytes of a call's body that the server has not let the client send."""
        return len(self._unsent[stream][0]) if stream in self._unsent else 0

    def pump(self, seconds: float) -> None:
        """Send and receive what can be, and wait for up to `seconds` for that."""
        self._fill()
        readable, writable, _ = select.select(
            [] if self.closed else [self._socket], [self._socket] if self._out else [], [], seconds
        )
        try:
            if writable:
                del self._out[: self._socket.send(self._out)]
            if readable:
                piece = self._socket.recv(2**16)
                self.closed = not piece
                self._in += piece
        except OSError:
            self.closed = True
            self._out.clear()
        while len(self._in) >= 9 and len(self._in) >= 9 + int.from_bytes(self._in[:3], "big"):
            size = 9 + int.from_bytes(self._in[:3], "big")
            kind, flags, stream = struct.unpack_from(">BBI", self._in, 3)
            self._take(kind, flags, stream, bytes(self._in[9:size]))
            del self._in[:size]

    def close(self) -> None:
        """Cut the connection."""
        self._socket.close()

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self._out += len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload

    def _fill(self) -> None:
        for stream, (body, end) in [*self._unsent.items()]:
            size = min(len(body), self._left[0], self._left[stream], _FRAME)
            if stream in self.ended or (size <= 0 and body):
                continue
            self._frame(DATA, END_STREAM if end and size == len(body) else 0, stream, bytes(body[:size]))
            self._left[0] -= size
            self._left[stream] -= size
            del body[:size]
            if not body:
                del self._unsent[stream]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & _ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == _INITIAL_WINDOW:
                    for known in self._left:
                        self._left[known] += value - self._initial if known else 0
                    self._initial = value
            self._frame(SETTINGS, _ACK, 0, b"")
        elif kind == WINDOW_UPDATE and stream in self._left:
            self._left[stream] += int.from_bytes(payload, "big")
        elif kind == PING and not flags & _ACK:
            self._frame(PING, _ACK, 0, payload)
        elif kind == DATA:
            self.answered.add(stream)
        if kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & END_STREAM):
            self.ended.add(stream)
