"""Many clients at once, and more than can be answered."""

import asyncio
import random
import statistics
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from ..http_process import process
from ..http_service import PATIENCE
from ..http_wire import head
from ..serving.squares import BLUE, GREEN, RED, png
from ..shared import until

COLOURS = (RED, GREEN, BLUE)


@dataclass
class Timed:
    code: int
    headers: dict[str, str]
    said: dict[str, Any]
    seconds: float


def post(image: bytes) -> bytes:
    return head(content_type="image/png", content_length=len(image)) + image


async def ask(port: int, request: bytes) -> Timed:
    """The answer to `request`, on a connection of its own."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        top = (await reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = top.strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.close()
    seconds = time.perf_counter() - began
    return Timed(int(status.split()[1]), headers, orjson.loads(body), seconds)


async def leave(port: int, request: bytes, pause: float) -> None:
    """Send `request`, and go away without waiting for its answer."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    await asyncio.sleep(pause)
    writer.transport.abort()


def told(seconds: list[float]) -> str:
    return (
        f"{len(seconds)} in {statistics.median(seconds) * 1e3:.1f} ms, p99 "
        f"{statistics.quantiles(seconds, n=100)[98] * 1e3:.1f}, at most {max(seconds) * 1e3:.1f}"
    )


async def bounded(work: Coroutine[Any, Any, Any]) -> Any:
    async with asyncio.timeout(2 * PATIENCE):
        return await work


@pytest.mark.slow
async def test_200_clients_a_third_of_which_leave_get_their_own_answers_and_leave_nothing_behind() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    requests = [post(png(colour)) for colour in COLOURS]

    async def one(number: int, port: int) -> None:
        request = requests[number % 3]
        if number % 3 == dice.randrange(3):
            cut = dice.choice((len(request), dice.randrange(1, len(request))))
            await leave(port, request[:cut], dice.uniform(0, 0.3))
        else:
            answer = await ask(port, request)
            assert answer.code == 200, answer.said
            assert answer.said["class_index"] == number % 3
            assert answer.said["probabilities"][number % 3] == pytest.approx(0.8, abs=1e-5)

    async def round_of_200(port: int) -> None:
        await asyncio.gather(*(one(number, port) for number in range(200)))

    with process(each=0.001, deadline=60, log_level="error") as service:
        until(service.ready)
        memory = []
        for _ in range(8):
            await bounded(round_of_200(service.port))
            until(lambda: service.metric("pthserve_inflight_requests") == 0, "an idle service")
            assert service.metric("pthserve_queue_depth") == 0
            memory.append(service.metric("process_resident_memory_bytes") / 2**20)
        print("MiB after each round", memory)
        assert memory[-1] - memory[2] < 10
        descriptors = service.metric("process_open_fds")
        assert descriptors < 100
        assert service.metric("pthserve_disconnects_total") > 100


@pytest.mark.alone
async def test_offered_twice_what_it_can_do_the_service_does_what_it_can() -> None:
    """The engine takes 20 ms an image, so 50 a second are possible; 100 a second come."""
    rate, seconds, deadline = 100, 8, 1.0
    request = post(png())
    probes: list[float] = []

    async def offer(port: int) -> list[Timed]:
        async def probe() -> None:
            while True:
                answer = await ask(port, head("GET", "/livez"))
                assert answer.code == 200
                probes.append(answer.seconds)
                await asyncio.sleep(0.1)

        probing = asyncio.create_task(probe())
        began = time.perf_counter()
        tasks = []
        for number in range(rate * seconds):
            await asyncio.sleep(began + number / rate - time.perf_counter())
            tasks.append(asyncio.create_task(ask(port, request)))
        answers = await asyncio.gather(*tasks)
        probing.cancel()
        return answers

    busy = "pthserve_forward_duration_seconds_sum"
    with process(each=0.02, deadline=deadline, log_level="error", max_batch=1) as service:
        until(service.ready)
        name = f'{busy}{{batch_size="1"}}'
        before = service.metric(name)
        answers = await bounded(offer(service.port))
        busy_seconds = service.metric(name) - before
        passes = service.metric('pthserve_forward_duration_seconds_count{batch_size="1"}')

    good = [answer for answer in answers if answer.code == 200]
    refused = [answer for answer in answers if answer.code == 503]
    waits = [answer.seconds for answer in good]
    refusals = [answer.seconds for answer in refused]
    retry_after = statistics.median(int(answer.headers["retry-after"]) for answer in refused)
    print(
        f"answered {told(waits)}; refused {told(refusals)}; of {len(answers)}; "
        f"engine busy {busy_seconds:.2f} of {seconds} s, {passes:.0f} passes; "
        f"retry-after {retry_after}; /livez {told(probes)}"
    )
    assert busy_seconds > 0.9 * seconds, "the engine was idle while there was work"
    assert len(good) > 0.95 * (passes - 20), "work was done that nobody could use"
    assert sum(wait < deadline for wait in waits) > 0.99 * len(waits)
    assert len(good) + len(refused) > 0.98 * len(answers)
    assert statistics.median(refusals) < 0.05
    assert statistics.median(probes) < 0.05
    assert 0.5 <= retry_after / statistics.median(waits) <= 2
