"""Bodies: the bytes that requests hold are bounded, and the request that goes is the largest that arrives."""

import asyncio
import gc
import threading
import zlib
from functools import partial

import pytest

from pthserve.access.bodies import BODIES, LARGE, Bodies
from pthserve.errors import DeadlineExceeded, MalformedRequest, Overloaded

MAX_BODY = 2**20


@pytest.fixture
def bodies() -> Bodies:
    return Bodies(MAX_BODY, cpus=1)


def full(bodies: Bodies) -> None:
    """Fill `bodies` with requests that have arrived."""
    for _ in range(BODIES):
        bodies.hold().grow(MAX_BODY)


def soon() -> float:
    return asyncio.get_running_loop().time() + 30


def test_what_is_held_is_given_back(bodies: Bodies) -> None:
    holding = bodies.hold()
    holding.grow(10)
    holding.shrink(4)
    assert bodies.held == 6
    holding.close()
    assert bodies.held == 0


def test_a_request_for_which_there_is_no_room_is_refused(bodies: Bodies) -> None:
    full(bodies)
    late = bodies.hold()
    with pytest.raises(Overloaded):
        late.grow(1)
    late.close()
    assert bodies.held == bodies.limit


def test_the_largest_that_arrives_makes_room_for_a_smaller_one(bodies: Bodies) -> None:
    refused: list[object] = []
    for number in range(BODIES):
        bodies.hold(partial(refused.append, number)).grow(MAX_BODY - (number != 3))
    small = bodies.hold(lambda: refused.append("small"))
    small.grow(1000)
    assert refused == [3]
    assert small.size == 1000
    assert bodies.held <= bodies.limit


def test_what_has_arrived_makes_room_for_nobody(bodies: Bodies) -> None:
    refused: list[str] = []
    for _ in range(BODIES):
        holding = bodies.hold(lambda: refused.append("arrived"))
        holding.grow(MAX_BODY)
        holding.arriving = False
    with pytest.raises(Overloaded):
        bodies.hold().grow(1000)
    assert refused == []


async def test_a_small_body_is_read_at_once_and_a_large_one_in_a_thread(bodies: Bodies) -> None:
    async def readers() -> list[threading.Thread]:
        holding = bodies.hold()
        return [
            await bodies.read(holding, bytes(size), soon(), lambda _: threading.current_thread())
            for size in (LARGE - 1, LARGE)
        ]

    at_once, in_a_thread = await readers()
    assert at_once is threading.current_thread()
    assert in_a_thread is not threading.current_thread()


async def test_inflated_bytes_are_held_before_they_are_there(bodies: Bodies) -> None:
    plain = bytes(MAX_BODY // 2)
    held = []

    def inflate(body: bytes) -> bytes:
        held.append(bodies.held)
        return zlib.decompress(body)

    async def read() -> tuple[int, int]:
        holding = bodies.hold()
        size = await bodies.read(holding, zlib.compress(plain), soon(), len, inflate)
        return size, bodies.held

    assert (await read()) == (len(plain), len(plain))
    assert held[0] >= len(plain)


async def test_a_body_for_which_there_is_no_room_is_not_inflated(bodies: Bodies) -> None:
    full(bodies)
    began = []

    with pytest.raises(Overloaded):
        await bodies.read(bodies.hold(), b"x" * 1000, soon(), len, lambda body: began.append(1) or body)
    assert not began


async def test_no_more_are_inflated_at_once_than_there_are_readers(bodies: Bodies) -> None:
    most = 0

    def inflate(body: bytes) -> bytes:
        nonlocal most
        most = max(most, bodies.held)
        return body

    reads = (bodies.read(bodies.hold(), bytes(10**5), soon(), len, inflate) for _ in range(BODIES * 2))
    await asyncio.gather(*reads)
    assert most <= MAX_BODY + BODIES * 2 * 10**5


async def test_more_are_read_at_once_where_there_are_more_cpus(bodies: Bodies) -> None:
    together = threading.Barrier(2, timeout=30)

    def parse(body: bytes) -> int:
        return together.wait()

    waiting = asyncio.Event()
    held = asyncio.create_task(bodies.read(bodies.hold(), bytes(LARGE), soon(), parse))
    asyncio.get_running_loop().call_soon(waiting.set)
    await waiting.wait()
    bodies.resize(4)
    other = bodies.read(bodies.hold(), bytes(LARGE), soon(), parse)
    assert sorted(await asyncio.gather(held, other)) == [0, 1]


async def test_a_read_that_waits_too_long_is_late(bodies: Bodies) -> None:
    release = threading.Event()

    async def first() -> object:
        return await bodies.read(bodies.hold(), bytes(LARGE), soon(), lambda _: release.wait(30))

    waiting = asyncio.create_task(first())
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded):
        await bodies.read(bodies.hold(), bytes(LARGE), asyncio.get_running_loop().time() + 0.05, len)
    release.set()
    assert await waiting


async def test_a_refused_body_is_not_kept_by_its_error(bodies: Bodies) -> None:
    class Body(bytes):
        """Bytes that can be found."""

    def refuse(body: bytes) -> None:
        raise MalformedRequest(f"{len(body)} bytes are too many")

    async def read() -> MalformedRequest:
        with pytest.raises(MalformedRequest) as caught:
            await bodies.read(bodies.hold(), Body(LARGE), soon(), refuse)
        return caught.value

    error = await read()
    assert str(error) == f"{LARGE} bytes are too many"
    assert not [found for found in gc.get_objects() if type(found) is Body]
