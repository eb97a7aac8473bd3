"""What it costs to be watched."""

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from pthserve.bench.client import Pool, Target
from pthserve.bench.load import Point, measure

IMAGE = Path(__file__).parents[2] / "weights/imagenet/golden/coffee.jpg"
ACCEPT = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
"""As Prometheus asks."""
ROUNDS, WARM_UP, SECONDS = 4, 0.5, 3.0
SCRAPES = 50


def cpu(address: str) -> float:
    """Seconds of CPU that the service has taken, itself included."""
    text = httpx.get(f"{address}/metrics").text
    found = re.search(r"^process_cpu_seconds_total (\S+)", text, re.MULTILINE)
    assert found
    return float(found[1])


@contextlib.contextmanager
def scraped(address: str, every: float) -> Iterator[None]:
    """The service is asked for its metrics, again and again."""
    stopped = threading.Event()

    def scrape() -> None:
        with httpx.Client(base_url=address, headers=ACCEPT) as http:
            while not stopped.wait(every):
                http.get("/metrics").raise_for_status()

    thread = threading.Thread(target=scrape)
    thread.start()
    yield
    stopped.set()
    thread.join()


def loaded(address: str) -> float:
    """Answers a second to as many clients as keep it busy."""
    target = Target.parse(address)
    request = target.request(IMAGE)
    done = asyncio.run(
        measure(
            lambda most: Pool(target, [request], most),
            Point(clients=8),
            seconds=SECONDS,
            warm_up=WARM_UP,
            deadline=10,
            timeout=30,
        )
    )
    assert not done.failures
    return done.throughput


@pytest.mark.alone
def test_a_scrape_each_second_takes_next_to_nothing_of_a_busy_service(demo: str) -> None:
    loaded(demo)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * ROUNDS):
        with_scrapes = number % 4 in (1, 2)  # whatever else grows or shrinks hits both alike
        with scraped(demo, 1.0) if with_scrapes else contextlib.nullcontext():
            rates[with_scrapes].append(loaded(demo))

    before = cpu(demo)
    loaded(demo)
    busy = (cpu(demo) - before) / (WARM_UP + SECONDS)
    before = cpu(demo)
    with httpx.Client(base_url=demo, headers=ACCEPT) as http:
        series = len(re.findall(r"^[^#]", http.get("/metrics").text, re.MULTILINE))
        for _ in range(SCRAPES - 1):
            http.get("/metrics").raise_for_status()
    scrape = (cpu(demo) - before) / SCRAPES

    watched, alone = (float(np.median(rates[key])) for key in (True, False))
    print(f"{alone:.0f} answers/s alone, {watched:.0f} scraped each second: {watched / alone:.3f}")
    print(f"a scrape of {series} series takes {scrape * 1000:.1f} ms of CPU")
    print(f"one scrape a second is {scrape / busy:.2%} of what a busy service does")
    assert scrape / busy < 0.05
