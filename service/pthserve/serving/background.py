"""Background: run long work, which may never end, in a thread outside the event loop."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


async def in_background(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, or raise what it raises.

    It runs in a daemon thread, which does not keep the process from ending.
    """
    done: Future[Result] = Future()
    done.set_running_or_notify_cancel()  # a caller that is cancelled does not end the thread
    threading.Thread(target=run, args=(work, done), name="background", daemon=True).start()
    try:
        return await asyncio.wrap_future(done)
    finally:
        del done  # an exception refers to this frame, and must not form a reference cycle


def run(work: Callable[[], Result], done: "Future[Result]") -> None:
    """Run `work` and set the result or the exception of `done`, which cannot be cancelled any more."""
    try:
        done.set_result(work())
    except BaseException as error:  # raised again where `done` is awaited
        done.set_exception(error)
    finally:
        del work, done
