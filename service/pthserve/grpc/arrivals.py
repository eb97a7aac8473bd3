"""Arrivals: how many gRPC messages may be arriving at once.

gRPC buffers a message until it is whole, says nothing of how much of it there is, and begins when the message
is asked for. So that is when it takes a turn; until then a client can send no more than a stream's window.
"""

import asyncio
from collections import deque

import grpc

from pthserve.errors import MalformedRequest, Overloaded, TooManyCalls, TooSlow

PATIENCE = 1.0
"""Seconds that a message may take to arrive while others wait for their turn."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class Arrivals:
    """Takes turns: `at_once` messages arrive, and up to `waiting` calls wait for that.

    The newest call is the next, and where too many wait the oldest is refused: calls whose messages never
    come cannot keep out those that come whole.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self._free = at_once
        self._most_waiting = waiting
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._arriving: dict[asyncio.Timeout, float] = {}
        """The time limits of those that arrive, oldest first, and when each began."""
        self._hurrying: asyncio.TimerHandle | None = None

    async def read(self, context: Context, until: float) -> bytes:
        """The message of a call, until its deadline on the event loop's clock.

        Raises Overloaded, TooSlow, and MalformedRequest where there is none.
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
                self._pass_on()  # it was this call's turn, and it has left
            if isinstance(error, TimeoutError):
                raise _too_many() from None
            raise

    def _pass_on(self) -> None:
        """The turn of a message that has arrived, or will not, goes to the newest that waits."""
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _hurry(self) -> None:
        """While some wait, end the messages that have taken their time; and look again when the next has."""
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
    """Lets `most` calls be at once. A call keeps its place until its response is sent or its client gone.

    refusal: what the others are told.
    """

    def __init__(self, most: int, refusal: str) -> None:
        self._left = most
        self._refusal = refusal

    def take(self, context: Context) -> None:
        """Take a place for the call; raises TooManyCalls where there is none."""
        if not self._left:
            raise TooManyCalls(self._refusal)
        self._left -= 1
        context.add_done_callback(self._give_back)  # type: ignore[arg-type]

    def _give_back(self, _: object) -> None:
        self._left += 1


def _too_many() -> Overloaded:
    return Overloaded("the limit of messages received at the same time is reached; try again later")
