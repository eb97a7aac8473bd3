"""Background: a thread beside the event loop, for work that takes long and may never end."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


async def in_background(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises; in a daemon's thread, so that it keeps no process from ending."""
    done: Future[Result] = Future()
    threading.Thread(target=run, args=(work, done), name="background", daemon=True).start()
    try:
        return await asyncio.wrap_future(done)
    finally:
        del done  # an exception leads to this frame, and must not lead back to itself


def run(work: Callable[[], Result], done: "Future[Result]") -> None:
    """Have `done` become what `work` returns or raises."""
    try:
        done.set_result(work())
    except BaseException as error:  # whoever awaits it gets it
        done.set_exception(error)
    finally:
        del work, done
