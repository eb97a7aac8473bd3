"""More is asked than can be done: what can be done is done in time, and the rest is told so at once."""

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ..running import Running, running
from .asking import Answer, Clients, get, post
from .models import MODULES, image, make

pytestmark = pytest.mark.alone

COST = 0.02
"""Seconds that the engine takes an image; it is asleep in them, so that all else has the machine."""
DEADLINE = 3.0
SECONDS = 15.0
ROUNDS = 3
"""A machine that others use may spoil a round; not so many in a row."""


@dataclass
class Round:
    """What came of a round.

    end: when the last request was due. capacity: answers a second, where each client waits for its own.
    """

    end: float
    capacity: float
    offered: float
    good: list[Answer]
    refused: list[Answer]
    others: Counter[int]
    probes: list[Answer]
    deepest: float

    @property
    def goodput(self) -> float:
        """Answers a second within their deadline while requests came, of the capacity."""
        counted = sum(answer.seconds <= DEADLINE and answer.came <= self.end for answer in self.good)
        return counted / SECONDS / self.capacity

    def retry_after(self) -> list[float]:
        """Of each refusal: what it was told to wait, by how long what was ahead of it really took."""
        admitted = sorted(self.good, key=lambda answer: answer.sent)
        sent = [answer.sent for answer in admitted]
        found = []
        for answer in self.refused:
            ahead = admitted[: bisect_left(sent, answer.came)]
            last = max(other.came for other in ahead)
            # It is told in whole seconds.
            found.append(int(answer.headers[b"retry-after"]) / np.ceil(last - answer.came))
        return found

    def faults(self) -> list[str]:
        """What does not hold, in words."""
        waits, refusals, probes, told = (
            np.array(values)
            for values in (
                [answer.seconds for answer in self.good],
                [answer.seconds for answer in self.refused],
                [answer.seconds for answer in self.probes],
                self.retry_after(),
            )
        )
        print(
            f"capacity {self.capacity:.1f}/s, offered {self.offered:.1f}/s: {len(waits)} answered, "
            f"{len(refusals)} refused, others {dict(self.others)}; goodput {self.goodput:.1%} of capacity; "
            f"answered in {told_of(waits)}; refused in {told_of(refusals)}; /livez in {told_of(probes)}; "
            f"Retry-After by the true wait {np.quantile(told, [0, 0.01, 0.5, 0.99, 1]).round(2)}; "
            f"deepest queue {self.deepest:.0f}"
        )
        held = {
            "95 % of the capacity goes out in time": self.goodput >= 0.95,
            "p99 of what is answered is in time": np.quantile(waits, 0.99) <= DEADLINE,
            "the rest is told 503": not self.others,
            "within 50 ms": np.quantile(refusals, 0.99) < 0.05,
            "Retry-After is right to a factor of two": ((told >= 0.5) & (told <= 2)).mean() >= 0.99,
            "/livez takes less than 50 ms": np.quantile(probes, 0.99) < 0.05,
            "the queue is bounded by what the deadline has room for": self.deepest <= DEADLINE / COST,
        }
        return [words for words, holds in held.items() if not holds]


def told_of(seconds: np.ndarray) -> str:
    p50, p99, most = np.quantile(seconds, [0.5, 0.99, 1]) * 1e3
    return f"{p50:.1f} ms, p99 {p99:.1f}, at most {most:.1f}"


async def overload(service: Running) -> Round:
    """Measure the capacity, then offer twice as much in an open loop."""
    requests = [post(image(seed)) for seed in range(8)]
    calm = Clients(service.address, requests)
    await calm.closed(8, 5.0)
    capacity = len(calm.answers) / (calm.answers[-1].came - calm.answers[0].sent)
    storm, probes = Clients(service.address, requests), Clients(service.address, [get("/livez")])
    deepest = 0.0

    async def watch() -> None:
        nonlocal deepest
        while True:
            deepest = max(deepest, await asyncio.to_thread(service.metric, "pthserve_queue_depth"))
            await asyncio.sleep(0.5)

    async with probes.every(0.05):
        watching = asyncio.create_task(watch())
        end = time.perf_counter() + SECONDS
        await storm.open(2 * capacity, SECONDS)
        watching.cancel()
    by_status = {status: [a for a in storm.answers if a.status == status] for status in (200, 503)}
    return Round(
        end,
        capacity,
        2 * capacity,
        by_status[200],
        by_status[503],
        Counter(answer.status for answer in storm.answers if answer.status not in by_status),
        probes.answers,
        deepest,
    )


async def test_offered_twice_what_it_can_do_it_does_what_it_can(tmp_path: Path) -> None:
    model = make(tmp_path / "net", kwargs={"seconds": COST})
    flags = ("--engine", "torch", "--deadline", str(DEADLINE), "--max-batch", "4")
    with running(model, tmp_path / "log", *flags, modules=MODULES) as service:
        for _ in range(ROUNDS):
            faults = (await overload(service)).faults()
            if not faults:
                break
            print("not so:", *faults, sep="\n  ")
        assert not faults
        assert service.metric("pthserve_inflight_requests") == 0
