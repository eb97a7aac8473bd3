"""Measure: one number at a time, and what else the machine did meanwhile."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import uvloop

from benchmarks.bare import Timed
from benchmarks.process import Process
from pthserve.bench.client import Pool, Target
from pthserve.bench.load import Point, Round, measure

QUIET = 0.15
"""Cores that others may take; what was measured while they took more is measured again."""


@dataclass(frozen=True, slots=True)
class Durations:
    """How long to measure, in seconds: under load, after a `warm_up` that does not count; bare; idle.

    repeats: of everything that is interleaved. tries: of one measurement, while others take CPU. budget: once
    the repeats have taken so long, nothing is tried again, and no other begins.
    """

    load: float = 3.0
    warm_up: float = 0.5
    bare: float = 1.5
    idle: float = 5.0
    repeats: int = 4
    tries: int = 3
    budget: float = 850.0


QUICK = Durations(load=0.5, warm_up=0.1, bare=0.05, idle=0.2, repeats=1, tries=1)


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured value, and the cores that service, client and everybody else took meanwhile."""

    value: float
    service: float = 0.0
    client: float = 0.0
    others: float = 0.0


class Usage:
    """Cores in use since it was made."""

    def __init__(self) -> None:
        self._began, self._busy = time.perf_counter(), _busy()

    def cores(self) -> float:
        """By everybody, the host of a virtual machine included."""
        return (_busy() - self._busy) / (time.perf_counter() - self._began)


def quietest(once: Callable[[], Sample], tries: int) -> Sample:
    """What `once` gives while others leave the machine alone, or the least disturbed of `tries`."""
    samples = [once()]
    while samples[-1].others > QUIET and len(samples) < tries:
        samples.append(once())
    return min(samples, key=lambda sample: sample.others)


def bare(once: Callable[[], Timed]) -> Sample:
    """The seconds that `once`, in a process that does nothing else, takes for an image."""
    usage = Usage()
    timed = once()
    return Sample(timed.seconds, timed.cores, others=max(0.0, usage.cores() - timed.cores))


def idle(process: Process, seconds: float) -> Sample:
    """The cores that a service takes while nobody asks it anything."""
    with process.awake():
        usage, began = Usage(), process.cpu()
        time.sleep(seconds)
        cores = (process.cpu() - began) / seconds
        return Sample(cores, service=cores, others=max(0.0, usage.cores() - cores))


def loaded(
    process: Process,
    port: int,
    photos: Sequence[Path],
    clients: int,
    value: Callable[[Round], float],
    durations: Durations,
) -> Sample:
    """`value` of what `clients`, who each wait for their answers, get from the service at `port`.

    Raises RuntimeError where an answer is not what was asked for: how fast a service fails is of no interest.
    """
    target = Target.parse(f"http://127.0.0.1:{port}")
    requests = [target.request(photo) for photo in photos]
    with process.awake():
        usage, began, cpu = Usage(), time.perf_counter(), process.cpu()
        answered = uvloop.run(
            measure(
                lambda most: Pool(target, requests, most),
                Point(clients=clients),
                seconds=durations.load,
                warm_up=durations.warm_up,
                deadline=60,
                timeout=60,
            )
        )
        service = (process.cpu() - cpu) / (time.perf_counter() - began)
        cores = usage.cores()
    if not answered.statuses and not answered.failures:  # on a slow machine, in a short time
        longer = replace(durations, load=2 * durations.load)
        return loaded(process, port, photos, clients, value, longer)
    if set(answered.statuses) != {200} or answered.failures:
        raise RuntimeError(
            f"{process.name} answered {dict(answered.statuses)}, {dict(answered.failures)}:\n{process.said()}"
        )
    return Sample(value(answered), service, answered.cpu, max(0.0, cores - service - answered.cpu))


def _busy() -> float:
    """Seconds of CPU that somebody had, or that the machine's host kept."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)
