"""The same load for long: neither memory nor latency creeps. `--soak 3600` does it for an hour."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ..images.pictures import file_of
from ..running import Running, running
from .asking import Answer, Clients, get, post
from .models import MODULES, image, make

pytestmark = [pytest.mark.alone, pytest.mark.long]

RATE = 20.0
"""Requests a second; a load that a small machine has room for beside the clients."""
BUSY = 8, 45.0
"""Clients, and seconds that do not count: as many at once as it can do, so that each thread meets each kind
of request many times, and the allocator's caches fill."""
CALM = 30.0
"""Seconds after it that do not count either; what the burst took is given back."""
WINDOW = 10.0
"""Seconds, the least memory in which counts: what a burst takes is given back, and what leaks is not."""
LOOK = 0.1
"""Seconds between two looks at memory: what was given back is soon taken again."""
KINDS = ("JPEG", "JPEG progressive", "PNG", "PNG palette", "WebP", "GIF", "BMP", "TIFF LZW")
INFER = b'{"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}]}'


def mixture() -> list[bytes]:
    """Requests of many kinds; one in twelve is at fault."""
    infer = (
        b"POST /v2/models/net/infer HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(INFER), INFER)
    )
    return [
        *(post(file_of(kind)) for kind in KINDS),
        post(image(1)),
        infer,
        get("/info"),
        post(file_of("JPEG")[:3000]),
    ]


async def soaked(service: Running, seconds: float) -> tuple[list[Answer], NDArray[np.float64]]:
    """The answers, and pairs of seconds and MiB, once it is warm."""
    await Clients(service.address, mixture()).closed(*BUSY)
    await Clients(service.address, mixture()).open(RATE, CALM)
    clients, looks = Clients(service.address, mixture()), []
    began = time.perf_counter()

    async def look() -> None:
        while True:
            looks.append((time.perf_counter() - began, await asyncio.to_thread(service.memory)))
            await asyncio.sleep(LOOK)

    looking = asyncio.create_task(look())
    await clients.open(RATE, seconds)
    looking.cancel()
    return clients.answers, np.array(looks)


def creep(looks: NDArray[np.float64]) -> float:
    """MiB a minute: the median slope between the windows' minima (Theil and Sen)."""
    windows = np.split(looks, np.flatnonzero(np.diff(looks[:, 0] // WINDOW)) + 1)
    least = [window[window[:, 1].argmin()] for window in windows]
    slopes = [
        (second[1] - first[1]) / (second[0] - first[0])
        for number, first in enumerate(least)
        for second in least[number + 1 :]
    ]
    return 60 * float(np.median(slopes))


async def test_memory_and_latency_do_not_creep(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    seconds = pytestconfig.getoption("soak")
    with running(make(tmp_path / "net"), tmp_path / "log", modules=MODULES) as service:
        answers, looks = await soaked(service, seconds)
        left = service.metric("pthserve_inflight_requests")
    slope = creep(looks)
    good = [answer for answer in answers if answer.status == 200]
    halves = np.array_split([answer.seconds for answer in sorted(good, key=lambda answer: answer.sent)], 2)
    first, second = (np.quantile(half, [0.5, 0.99]) * 1e3 for half in halves)
    print(
        f"{len(answers)} requests in {seconds:.0f} s; memory {looks[0, 1]:.1f} to {looks[-1, 1]:.1f} MiB, "
        f"{slope:+.2f} MiB a minute; latency {first[0]:.1f} then {second[0]:.1f} ms, "
        f"p99 {first[1]:.1f} then {second[1]:.1f}"
    )
    assert {answer.status for answer in answers} == {200, 422}
    assert len(good) == pytest.approx(len(answers) * 11 / 12, abs=12)
    assert slope < 1
    assert second[0] < 1.2 * first[0] + 1
    assert left == 0
