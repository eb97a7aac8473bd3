"""Arrivals: a limit on the number of gRPC messages that arrive at the same time.

gRPC buffers a message until it is complete, does not report how much of it has arrived, and starts to receive
it when the handler reads. So a call waits for its turn before it reads; until then, its client can send no
more than the window of a stream.
"""

import asyncio
from collections import deque

import grpc

from pthserve.errors import MalformedRequest, Overloaded, TooManyCalls, TooSlow

PATIENCE = 1.0
"""Seconds that a message may take to arrive while other calls wait for their turn."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class Arrivals:
    """Turns to receive a message: one for each of `at_once` calls, while up to `waiting` others wait.

    The newest call is the next, and when too many wait the oldest is refused: calls whose messages never
    arrive cannot keep out the others.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self._free = at_once
        self._most_waiting = waiting
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._arriving: dict[asyncio.Timeout, float] = {}
        """The time limits of the messages that arrive, oldest first, and when each began."""
        self._hurrying: asyncio.TimerHandle | None = None

    async def read(self, context: Context, until: float) -> bytes:
        """Receive the message of a call.

        Args:
            until: The call's deadline, on the event loop's clock.

        Raises:
            Overloaded: Too many calls wait.
            TooSlow: The message did not arrive in time.
            MalformedRequest: The call ended without a message.
        """
        await self._turn(until)
        try:
            async with asyncio.timeout_at(until) as limit:
                self._arriving[limit] = asyncio.get_running_loop().time()
                body = await context.read()
        except TimeoutError:
            raise TooSlow("the message did not arrive before the deadline") from None
        finally:
            self._arriving.pop(limit, None)
            self._pass_on()
        if not isinstance(body, bytes):
            raise MalformedRequest("the call ended before a message was sent")
        return body

    async def _turn(self, until: float) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if len(self._waiting) > self._most_waiting:
            self._waiting.popleft().set_exception(_too_many())
        self._hurry()
        try:
            async with asyncio.timeout_at(until):
                await turn
        except BaseException as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self._pass_on()  # the call got its turn and ended at the same time
            if isinstance(error, TimeoutError):
                raise _too_many() from None
            raise

    def _pass_on(self) -> None:
        """Pass the turn of a call that has its message, or has ended, to the newest waiting call."""
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _hurry(self) -> None:
        """While calls wait, stop receiving messages that take longer than PATIENCE, and schedule a check."""
        if self._hurrying is not None:
            self._hurrying.cancel()
            self._hurrying = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self._waiting:
            return
        for limit, began in self._arriving.items():
            if began + PATIENCE > now:
                self._hurrying = loop.call_at(began + PATIENCE, self._hurry)
                return
            if not limit.expired() and (limit.when() or now) > now:
                limit.reschedule(now)
        self._hurrying = loop.call_later(PATIENCE, self._hurry)


class Places:
    """A limit of `most` concurrent calls. A call has its place until its response is sent or its client left.

    refusal: the error message for further calls.
    """

    def __init__(self, most: int, refusal: str) -> None:
        self._left = most
        self._refusal = refusal

    def take(self, context: Context) -> None:
        """Take a place for the call; raises TooManyCalls if there is none."""
        if not self._left:
            raise TooManyCalls(self._refusal)
        self._left -= 1
        context.add_done_callback(self._give_back)  # type: ignore[arg-type]

    def _give_back(self, _: object) -> None:
        self._left += 1


def _too_many() -> Overloaded:
    return Overloaded("the limit of messages received at the same time is reached; try again later")
