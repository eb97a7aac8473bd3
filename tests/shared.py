"""Shared: what tests of several folders wait for, what they read of a service, and what takes long."""

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

import httpx
import pytest

PATIENCE = 30.0
"""Seconds after which a condition that does not come true is a failure."""

Value = TypeVar("Value")


def _pauses() -> Iterator[float]:
    """Seconds between two looks: short at first, so that what is quick is quick."""
    pause = 0.005
    while True:
        yield pause
        pause = min(0.2, 1.2 * pause)


def until(condition: Callable[[], Value], what: str = "the condition", seconds: float = PATIENCE) -> Value:
    """The first true value of `condition`, which is asked again and again."""
    end = time.monotonic() + seconds
    for pause in _pauses():
        if value := condition():
            return value
        if time.monotonic() > end:
            break
        time.sleep(pause)
    raise AssertionError(f"{what} did not come within {seconds:g} s")


async def until_async(
    condition: Callable[[], Value], what: str = "the condition", seconds: float = PATIENCE
) -> Value:
    """As `until`, while the event loop goes on."""
    end = time.monotonic() + seconds
    for pause in _pauses():
        if value := condition():
            return value
        if time.monotonic() > end:
            break
        await asyncio.sleep(pause)
    raise AssertionError(f"{what} did not come within {seconds:g} s")


def with_long(names: Iterable[str], long: Collection[str]) -> list[Any]:
    """`names` as parameters of a test, of which those in `long` are left to the long tests."""
    return [pytest.param(name, marks=pytest.mark.long) if name in long else name for name in names]


def metric(client: httpx.Client, name: str) -> float:
    """The value of the sample called `name`, with its labels, as /metrics gives it; 0 without one."""
    for line in client.get("/metrics").text.splitlines():
        if line.rpartition(" ")[0] == name:
            return float(line.rpartition(" ")[2])
    return 0.0


def refuses(port: int) -> bool:
    """Whether nobody listens on a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False
