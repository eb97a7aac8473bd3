"""Limits: body size, deadline and disconnects of each request, and the memory of large responses.

No permit is needed up to here: a client that sends slowly occupies only its connection. A large response
counts as the body of a request does, until the client has read it.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import closing
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pthserve.access.bodies import Bodies, Holding, no_room
from pthserve.errors import MalformedRequest, PthserveError, TooLarge, TooSlow
from pthserve.http.exchange import LARGE
from pthserve.http.problems import answer

TIMEOUT_HEADER: dict[str, Any] = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "the client's deadline in seconds; it can only shorten that of the service",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
"""The OpenAPI description of the header: FastAPI cannot derive it, since this module reads the header."""


def remaining(scope: Scope) -> float:
    """Return the seconds until the deadline of the request with this `scope`; negative after it."""
    return until(scope) - asyncio.get_running_loop().time()


def until(scope: Scope) -> float:
    """Return the deadline of the request with this `scope`, on the event loop's clock."""
    moment: float = scope["state"]["until"]
    return moment


def holding(scope: Scope) -> Holding:
    """Return the memory accounting of the request with this `scope`."""
    held: Holding = scope["state"]["holding"]
    return held


class Limits:
    """ASGI middleware that limits the size of a request body, its memory and the duration of the request.

    Args:
        app: The application behind it.
        deadline: Seconds for a request; `X-Request-Timeout` can only shorten it.
        bodies: Counts the bytes that requests hold.
        draining: Returns whether to close each connection after its next response.
    """

    def __init__(self, app: ASGIApp, deadline: float, bodies: Bodies, draining: Callable[[], bool]) -> None:
        self.app = app
        self.deadline = deadline
        self.bodies = bodies
        self.draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(self, receive, send)
        try:
            exchange.admit(scope)
        except PthserveError as error:
            await answer(error)(scope, receive, exchange.send)
        else:
            with closing(self.bodies.hold(exchange.refuse)) as held:
                await exchange.run(scope, held)


class _Exchange:
    """One request and its response."""

    def __init__(self, limits: Limits, receive: Receive, send: Send) -> None:
        self._limits = limits
        self._receive = receive
        self._send = send
        self._holding: Holding
        self._until = 0.0
        self._start: Message | None = None
        self._answered = False
        self._gone = False
        self._refused = False
        self._task: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    def admit(self, scope: Scope) -> None:
        """Read deadline and size from the headers; raises MalformedRequest or TooLarge."""
        seconds = self._limits.deadline
        for name, value in scope["headers"]:
            if name == b"x-request-timeout":
                seconds = min(seconds, _seconds(value))
            elif name == b"content-length" and int(value) > self._limits.bodies.max_body:
                raise self._too_large()
        self._until = asyncio.get_running_loop().time() + seconds
        scope.setdefault("state", {})["until"] = self._until

    def refuse(self) -> None:
        """End the request while its body is arriving: other requests need its memory."""
        self._refused = True
        if self._task is not None:
            self._task.cancel()

    async def run(self, scope: Scope, held: Holding) -> None:
        self._holding = scope["state"]["holding"] = held
        self._task = asyncio.current_task()
        try:
            await self._limits.app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not (self._gone or self._refused):
                raise
            assert self._task is not None
            self._task.uncancel()
        finally:
            if self._watcher is not None:
                self._watcher.cancel()
            self._task = self._watcher = None  # both refer to this object, and so to the body

    async def receive(self) -> Message:
        try:
            async with asyncio.timeout_at(self._until if self._watcher is None else None):
                message = await self._receive()
        except TimeoutError:
            self._holding.arriving = False
            raise TooSlow("the request body did not arrive before the deadline") from None
        except asyncio.CancelledError:
            if not self._refused:
                raise
            assert self._task is not None
            self._task.uncancel()
            raise no_room() from None
        if message["type"] == "http.request":
            self._holding.arriving = message.get("more_body", False)
            self._hold(len(message.get("body", b"")))
            if not message.get("more_body", False) and self._watcher is None:
                self._watcher = asyncio.create_task(self._watch())
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message  # sent with the body, for which there may be no memory
            return
        if len(message.get("body", b"")) >= LARGE:
            try:
                self._holding.grow_for_response(len(message["body"]))
            except PthserveError as error:
                if self._start is None:
                    raise
                reply = answer(error)
                self._start = {**self._start, "status": reply.status_code, "headers": reply.raw_headers}
                message = {"type": "http.response.body", "body": reply.body}
        if self._start is not None:
            start, self._start = self._start, None
            if self._limits.draining():
                start["headers"] = [*start.get("headers", ()), (b"connection", b"close")]
            await self._send(start)
        if not message.get("more_body", False):
            self._answered = True
        await self._send(message)

    def _hold(self, size: int) -> None:
        if self._holding.size + size > self._limits.bodies.max_body:
            self._holding.arriving = False  # the error response that follows must not be interrupted
            raise self._too_large()
        self._holding.grow(size)

    async def _watch(self) -> None:
        """Cancel the request if the client leaves, the only message that can arrive after the body."""
        await self._receive()
        if not self._answered:
            self._gone = True
            assert self._task is not None
            self._task.cancel()

    def _too_large(self) -> TooLarge:
        limit = self._limits.bodies.max_body
        return TooLarge(f"the request body is larger than the limit of {limit} bytes")


def _seconds(value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise MalformedRequest("X-Request-Timeout must be a number of seconds greater than 0, such as 0.5")
    return seconds
