"""Requests that are broken in any way: each is answered, none with a mistake, and nothing stays behind."""

import asyncio
import re
import time
from collections import Counter

import orjson
import pytest

from pthserve.serving.memory import EVERY

from ..load.models import image
from ..running import Running
from .mutations import Sent, request
from .wire import Client, Reply

pytestmark = pytest.mark.slow

CLIENTS = 8
WARM_UP = 0.4
"""So many requests, as a share of those that follow, are sent before memory is first looked at."""


def trouble(sent: Sent, reply: Reply) -> str:
    """What is wrong with an answer, in words; empty where nothing is."""
    code = reply.code
    if code <= 0:
        return "no answer" if sent.whole and code < 0 else "hung up" if sent.whole else ""
    spoilt = sent.kind == "wire" and code in (501, 505)  # another version of HTTP, or another transfer coding
    if code > 499 and code not in (503, 504) and not spoilt:
        return f"{code}: {reply.body[:200]!r}"
    if "x-request-id" not in reply.headers and code not in (400, 408, 431, 501, 505):
        return f"{code} without an id"
    if code >= 400 and not sent.head:
        try:
            said = orjson.loads(reply.body)["error"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return f"{code} without its reason: {reply.body[:200]!r}"
        if not said or not isinstance(said, str):
            return f"{code} with an empty reason"
    return ""


async def barrage(port: int, seed: int, numbers: range) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Send the requests `numbers` of the run `seed`; what was answered, and what should not have been."""
    todo = iter(numbers)
    seen: Counter[tuple[str, int]] = Counter()
    wrong: list[str] = []

    async def client() -> None:
        connection = Client(port)
        for number in todo:
            sent = request(seed, number)
            reply = await connection.send(sent)
            seen[sent.kind, reply.code] += 1
            if found := trouble(sent, reply):
                wrong.append(f"request({seed}, {number}), {sent.kind}: {found}")
        connection.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return seen, wrong


async def test_each_is_answered_and_nothing_stays_behind(
    service: Running, seed: int, pytestconfig: pytest.Config
) -> None:
    count = pytestconfig.getoption("fuzz")
    turn = round(count * WARM_UP)
    answer = probabilities(service)
    codes, wrong = await barrage(service.port, seed, range(turn))
    before = settled(service)
    began = time.monotonic()
    others, more = await barrage(service.port, seed, range(turn, turn + count))
    print(f"{count / (time.monotonic() - began):.0f} requests a second")
    after = settled(service)
    print(f"memory {before:.1f} MiB before, {after:.1f} after")
    codes += others
    for kind in sorted({kind for kind, _ in codes}):
        print(kind, {code: number for (other, code), number in sorted(codes.items()) if other == kind})
    assert not wrong + more, "\n".join((wrong + more)[:20])
    assert after < 1.05 * before
    assert probabilities(service) == pytest.approx(answer, abs=1e-5)
    assert service.client.get("/healthz").status_code == 200
    assert not re.search(r"Traceback|^\S+ (error|critical)", service.log.read_text(), re.MULTILINE)


def probabilities(service: Running) -> list[float]:
    """Of an image that is sound."""
    found: list[float] = service.client.post("/predict", files={"image": image(1)}).json()["probabilities"]
    return found


def settled(service: Running) -> float:
    """MiB of memory once nothing is in flight, and what was freed has been given back."""
    until_idle(service)
    looks = []
    end = time.monotonic() + 1.5 * EVERY
    while time.monotonic() < end:
        looks.append(service.memory())
        time.sleep(0.5)
    return min(looks)


def until_idle(service: Running) -> None:
    end = time.monotonic() + 30
    while service.metric("pthserve_inflight_requests") or service.metric("pthserve_queue_depth"):
        assert time.monotonic() < end, "a permit was not given back"
        time.sleep(0.05)
