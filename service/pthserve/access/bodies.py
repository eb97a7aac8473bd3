"""Bodies: how many bytes of requests' bodies the process holds at once, and the threads that read large ones.

One `Bodies` counts for HTTP and gRPC together. It counts bytes as they arrive, and those that a compressed
body becomes before it is inflated. Where there is no room, the request that goes is the one that holds the
most and has not arrived in full: a few large uploads that never end cannot keep small requests out.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pthserve.errors import DeadlineExceeded, Overloaded, PthserveError
from pthserve.metrics import REJECTED

BODIES = 16
"""How many bodies of the largest size may be held at once, however many requests they belong to."""
LARGE = 2**16
"""A body of so many bytes, or a compressed one, is read beside the event loop."""

_EXPANSION = 1032
"""Most bytes that one byte of deflate becomes (zlib's technical notes)."""

Result = TypeVar("Result")


class Holding:
    """The bytes that one request holds.

    arriving: whether more of its body may come; refuse: ends the request, where its bytes are needed.
    """

    def __init__(self, bodies: "Bodies", refuse: Callable[[], None] | None = None) -> None:
        self.size = 0
        self.arriving = refuse is not None
        self.refuse = refuse
        self._bodies = bodies

    def grow(self, size: int) -> None:
        """Hold `size` bytes more. Raises Overloaded where there is no room for them."""
        self.size += size
        self._bodies.held += size
        while self._bodies.held > self._bodies.limit:
            self._bodies.make_room(self)

    def shrink(self, size: int) -> None:
        """Hold `size` bytes less."""
        size = min(size, self.size)  # what was refused holds nothing any more
        self.size -= size
        self._bodies.held -= size

    def close(self) -> None:
        """Hold nothing any more."""
        self.shrink(self.size)
        self.arriving, self.refuse = False, None  # which leads back to the request
        self._bodies.forget(self)


class Bodies:
    """Holds at most `BODIES` bodies of `max_body` bytes. One event loop uses it.

    cpus: every two of them have a thread that inflates and parses large bodies; the others are for images.
    held: bytes that are held now.
    """

    def __init__(self, max_body: int, cpus: int) -> None:
        self.limit = BODIES * max_body
        self.max_body = max_body
        self.held = 0
        self._holdings: set[Holding] = set()
        readers = max(1, cpus // 2)
        self._readers = ThreadPoolExecutor(readers, "bodies")
        self._turns = asyncio.Semaphore(readers)

    def hold(self, refuse: Callable[[], None] | None = None) -> Holding:
        """What a request holds, nothing to begin with; to be closed when it ends. See `Holding`."""
        holding = Holding(self, refuse)
        self._holdings.add(holding)
        return holding

    def forget(self, holding: Holding) -> None:
        """`holding` is closed."""
        self._holdings.discard(holding)

    def make_room(self, asking: Holding) -> None:
        """Refuse the arriving request that holds the most; raises Overloaded where it asks itself."""
        arriving = (holding for holding in self._holdings if holding.arriving)
        largest = max(arriving, key=lambda holding: holding.size, default=asking)
        REJECTED.labels("memory").inc()
        if largest is asking or largest.size <= asking.size or largest.refuse is None:
            raise no_room()
        largest.arriving = False
        largest.shrink(largest.size)
        largest.refuse()

    async def read(
        self,
        holding: Holding,
        body: bytes,
        until: float,
        parse: Callable[[bytes], Result],
        inflate: Callable[[bytes], bytes] | None = None,
    ) -> Result:
        """What `parse` makes of `body`: at once, or in a reader's thread where that may take long.

        until: the request's deadline, on the event loop's clock. inflate: makes the body out of a compressed
        one, at most `max_body` bytes; they are held before they are there.
        Raises Overloaded, DeadlineExceeded, and what `parse` and `inflate` raise.
        """
        if len(body) < LARGE and inflate is None:
            return parse(body)
        try:
            async with asyncio.timeout_at(until), self._turns:
                if inflate is not None:
                    most = min(self.max_body, _EXPANSION * len(body))
                    holding.grow(most)
                    body = await self._in_thread(inflate, body)
                    holding.shrink(most - len(body))
                return await self._in_thread(parse, body) if len(body) >= LARGE else parse(body)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the answer was ready") from None
        finally:
            del body, parse, inflate  # as below

    async def _in_thread(self, work: Callable[[bytes], Result], body: bytes) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, work, body)
        except PthserveError as error:
            raise bare(error) from None
        finally:
            del work, body  # an error leads to this frame, and must not keep the body

    def close(self) -> None:
        """End the readers, when what they have begun is done."""
        self._readers.shutdown(wait=False, cancel_futures=True)


def bare(error: PthserveError) -> PthserveError:
    """`error` without what led to it: that holds the body, and would until the garbage collector comes by."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def no_room() -> Overloaded:
    """What a request is told for whose body there is no room."""
    return Overloaded("the service has no memory left for another request body; try again later")
