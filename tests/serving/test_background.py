"""Long work runs in a thread of its own, and nobody need wait for it."""

import asyncio
import threading

import pytest

from pthserve.serving.background import in_background


async def test_it_returns_what_the_work_returns_and_raises_what_it_raises() -> None:
    assert await in_background(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_background(lambda: 1 // 0)


async def test_work_whose_caller_was_cancelled_ends_without_an_error() -> None:
    started, leave = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        threads.append(threading.current_thread())
        started.set()
        leave.wait()
        raise ValueError("nobody waits for this")

    waiting = asyncio.create_task(in_background(work))
    await asyncio.to_thread(started.wait)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    leave.set()
    await asyncio.to_thread(threads[0].join)  # an exception of the thread would fail this test
