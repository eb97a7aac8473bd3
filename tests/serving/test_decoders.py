"""Images are decoded within one bound of memory, and those that take long hold up nobody else."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pthserve.errors import BrokenImage, Overloaded, TooLarge
from pthserve.images.cost import Cost
from pthserve.images.preprocess import Pending
from pthserve.serving.decoders import SLOW, SMALL, Decoders, Job

from ..shared import until_async
from .squares import Gate

MEMORY = 1600
PIXELS = np.zeros((1, 1, 3), np.uint8)


class Images:
    """Jobs for `decoders`, and which of them are being decoded or have been, by name."""

    def __init__(self, decoders: Decoders) -> None:
        self.decoders = decoders
        self.begun: list[str] = []
        self.gates: dict[str, Gate] = {}

    def submit(
        self, name: str, memory: int = 1, seconds: float = 0.0, deadline: float = math.inf
    ) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        gate = self.gates[name] = Gate()

        def pixels() -> NDArray[Any]:
            self.begun.append(name)
            gate(PIXELS)
            return PIXELS

        def decoded(pixels: NDArray[Any], _: float, __: tuple[int, int]) -> None:
            loop.call_soon_threadsafe(lambda: future.done() or future.set_result(pixels))

        self.decoders.submit(
            Job(future, lambda: Pending((1, 1), Cost(memory, seconds), pixels), decoded, deadline)
        )
        return future

    async def entered(self, name: str) -> None:
        assert await asyncio.to_thread(self.gates[name].entered.wait, 10)

    async def finish(self, name: str, future: asyncio.Future[Any]) -> None:
        self.gates[name].opened.set()
        await asyncio.wait_for(future, 10)


@asynccontextmanager
async def decoding(cpus: int = 4, memory: int = MEMORY) -> AsyncIterator[Images]:
    decoders = Decoders(cpus, memory)
    images = Images(decoders)
    try:
        yield images
    finally:
        for gate in images.gates.values():
            gate.opened.set()
        decoders.close(10)
        assert not any(thread.is_alive() for thread in decoders._threads)
        assert decoders._free == memory, "memory leaked"


def run(check: Callable[[], Any]) -> None:
    asyncio.run(check())


async def opened(images: Images, count: int) -> None:
    """So many wait, their headers read."""
    await until_async(lambda: len(images.decoders._waiting) == count)


def test_an_image_waits_for_memory_that_others_have() -> None:
    async def check() -> None:
        async with decoding() as images:
            first = images.submit("first", MEMORY // 2)
            second = images.submit("second", MEMORY // 2)
            await images.entered("first")
            await images.entered("second")
            third = images.submit("third", MEMORY // 2)
            await opened(images, 1)
            assert sorted(images.begun) == ["first", "second"]
            await images.finish("first", first)
            await images.entered("third")
            await images.finish("second", second)
            await images.finish("third", third)

    run(check)


def test_an_image_that_never_fits_is_refused_at_once() -> None:
    async def check() -> None:
        async with decoding() as images:
            with pytest.raises(TooLarge, match="decode_memory"):
                await images.submit("huge", MEMORY + 1)
            assert images.begun == []

    run(check)


def test_small_images_overtake_one_that_waits_and_larger_ones_do_not() -> None:
    async def check() -> None:
        async with decoding() as images:
            first = images.submit("first", MEMORY // 2)
            await images.entered("first")
            large = images.submit("large", MEMORY)
            await opened(images, 1)
            middle = images.submit("middle", MEMORY // 4)
            await opened(images, 2)
            await images.finish("small", images.submit("small", MEMORY // SMALL))
            assert images.begun == ["first", "small"]
            await images.finish("first", first)
            await images.finish("large", large)
            await images.finish("middle", middle)
            assert images.begun == ["first", "small", "large", "middle"]

    run(check)


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_slow_images_leave_a_thread_for_the_others(cpus: int) -> None:
    async def check() -> None:
        async with decoding(cpus) as images:
            slow = {f"slow {number}": images.submit(f"slow {number}", 1, SLOW) for number in range(8)}
            await until_async(lambda: len(images.begun) == max(1, cpus - 1))
            await images.finish("quick", images.submit("quick"))
            assert len(images.begun) == max(1, cpus - 1) + 1
            for name in slow:  # whose headers were read first is as it happens
                images.gates[name].opened.set()
            await asyncio.wait_for(asyncio.gather(*slow.values()), 10)

    run(check)


def test_what_nobody_waits_for_keeps_its_memory_until_its_thread_is_free() -> None:
    async def check() -> None:
        async with decoding() as images:
            left = images.submit("left", MEMORY)
            await images.entered("left")
            left.cancel()
            second = images.submit("second", MEMORY)
            await opened(images, 1)
            assert images.begun == ["left"]
            images.gates["left"].opened.set()
            await images.finish("second", second)

    run(check)


def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    async def check() -> None:
        async with decoding() as images:
            first = images.submit("first", MEMORY)
            await images.entered("first")
            left = images.submit("left", MEMORY)
            last = images.submit("last", MEMORY)
            await opened(images, 2)
            left.cancel()
            await images.finish("first", first)
            await images.finish("last", last)
            assert images.begun == ["first", "last"]

    run(check)


def test_a_slow_image_whose_turn_would_come_too_late_is_told_when_to_come_again() -> None:
    async def check() -> None:
        async with decoding(cpus=2) as images:
            images.decoders._slowness.observe(1.0)
            first = images.submit("first", 1, 5.0)
            await images.entered("first")
            with pytest.raises(Overloaded) as refused:
                await images.submit("late", 1, 5.0, deadline=0.0)
            assert refused.value.retry_after == pytest.approx(5.0)
            await images.finish("first", first)

    run(check)


def test_a_decoder_that_raises_gives_its_memory_back() -> None:
    async def check() -> None:
        async with decoding() as images:
            future = asyncio.get_running_loop().create_future()

            def broken() -> NDArray[Any]:
                raise BrokenImage("the image is broken")

            images.decoders.submit(
                Job(future, lambda: Pending((1, 1), Cost(MEMORY, SLOW), broken), lambda *_: None, math.inf)
            )
            with pytest.raises(BrokenImage):
                await future
            await images.finish("next", images.submit("next", MEMORY, SLOW))

    run(check)


def test_the_end_waits_no_longer_than_it_is_told_for_an_image_that_hangs() -> None:
    async def check() -> None:
        decoders = Decoders(2, MEMORY)
        images = Images(decoders)
        future = images.submit("hangs", MEMORY, SLOW)
        await images.entered("hangs")
        ending = threading.Thread(target=decoders.close, args=(0.05,))
        ending.start()
        await asyncio.to_thread(ending.join, 10)
        assert not ending.is_alive()
        assert not future.done()
        images.gates["hangs"].opened.set()
        await asyncio.wait_for(future, 10)

    run(check)
