"""Bodies: the memory for request bodies and large responses, and the threads that parse large bodies.

One `Bodies` counts for HTTP and gRPC together. It counts bytes as they arrive, and the decompressed size of a
body before it is decompressed. If there is no memory left, the request that is refused is the one that holds
most and has not arrived in full: a few large uploads that never end cannot keep small requests out.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pthserve.errors import DeadlineExceeded, Overloaded, PthserveError, TooLarge
from pthserve.metrics import Rejection, count_rejection

BODIES = 16
"""Maximum memory for bodies, in bodies of the maximum size."""
LARGE = 2**16
"""Size in bytes from which a body is parsed outside the event loop; a compressed one always is."""

_EXPANSION = 1032
"""Maximum number of bytes from one byte of deflate (technical notes of zlib)."""

Result = TypeVar("Result")


class Holding:
    """The bytes that one request holds.

    Attributes:
        size: Number of bytes.
        arriving: Whether more of the body may arrive.
        refuse: Ends the request if its memory is needed.
    """

    def __init__(self, bodies: "Bodies", refuse: Callable[[], None] | None = None) -> None:
        self.size = 0
        self.arriving = refuse is not None
        self.refuse = refuse
        self._bodies = bodies

    def grow(self, size: int) -> None:
        """Hold `size` more bytes; raises Overloaded if there is no memory for them."""
        self.size += size
        self._bodies.held += size
        while self._bodies.held > self._bodies.limit:
            self._bodies.make_room(self)

    def grow_for_response(self, size: int) -> None:
        """Hold `size` more bytes for a response.

        Raises:
            TooLarge: There can never be memory for so many bytes.
            Overloaded: There is none now. Nothing more is held than before, as with TooLarge.
        """
        if size > self._bodies.limit:
            raise TooLarge(
                f"the response needs {size >> 20} MiB; the limit is {self._bodies.limit >> 20} MiB "
                f"({BODIES} x max_body): ask for less, or for binary data"
            )
        try:
            self.grow(size)
        except Overloaded:
            self.shrink(size)
            raise

    def shrink(self, size: int) -> None:
        """Release `size` bytes."""
        size = min(size, self.size)  # a refused request holds nothing
        self.size -= size
        self._bodies.held -= size

    def close(self) -> None:
        """Release all bytes."""
        self.shrink(self.size)
        self.arriving, self.refuse = False, None  # `refuse` refers to the request
        self._bodies.forget(self)


class Bodies:
    """Holds at most `BODIES` bodies of `max_body` bytes. One event loop uses it.

    Attributes:
        limit: Maximum number of bytes.
        max_body: Maximum size of one body.
        held: Number of bytes held now.
    """

    def __init__(self, max_body: int, cpus: int) -> None:
        """Start with nothing held; there is one parsing thread for every two of `cpus`."""
        self.limit = BODIES * max_body
        self.max_body = max_body
        self.held = 0
        self._holdings: set[Holding] = set()
        self._start_readers(cpus)

    def resize(self, cpus: int) -> None:
        """Use so many CPUs from now on. The threads that were there end with their current work."""
        before = self._readers
        self._start_readers(cpus)
        before.shutdown(wait=False)

    def _start_readers(self, cpus: int) -> None:
        count = max(1, cpus // 2)
        self._readers = ThreadPoolExecutor(count, "bodies")
        self._turns = asyncio.Semaphore(count)

    def hold(self, refuse: Callable[[], None] | None = None) -> Holding:
        """Return a `Holding` for a new request, to be closed when the request ends."""
        holding = Holding(self, refuse)
        self._holdings.add(holding)
        return holding

    def forget(self, holding: Holding) -> None:
        """Remove a closed holding."""
        self._holdings.discard(holding)

    def make_room(self, asking: Holding) -> None:
        """Refuse the arriving request that holds most; raises Overloaded if that is the one asking."""
        arriving = (holding for holding in self._holdings if holding.arriving)
        largest = max(arriving, key=lambda holding: holding.size, default=asking)
        count_rejection(Rejection.MEMORY)
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
        """Parse a body: at once if it is small, otherwise in a thread.

        Args:
            holding: The holding of the request.
            body: The body as it arrived.
            until: The deadline of the request, on the clock of the event loop.
            parse: Parses the body.
            inflate: Decompresses the body to at most `max_body` bytes, if it is compressed.

        Raises:
            Overloaded: There is no memory for the decompressed body.
            DeadlineExceeded: The deadline passed first.
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
        """Stop the threads after their current work."""
        self._readers.shutdown(wait=False, cancel_futures=True)


def bare(error: PthserveError) -> PthserveError:
    """Remove traceback and cause of `error`, which would hold the body until the next garbage collection."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def no_room() -> Overloaded:
    """Return the error for a request for whose body or response there is no memory."""
    return Overloaded("the service has no memory left for another request body or response; try again later")
