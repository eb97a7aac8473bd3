"""Run: everything that is measured, interleaved, so that what disturbs the machine disturbs all alike."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks import bare, measure
from benchmarks.findings import Findings, Key, Start
from benchmarks.machine import Machine
from benchmarks.material import SIZES, Material
from benchmarks.measure import Durations, Sample, quietest
from benchmarks.process import Process, free_port
from benchmarks.subjects import DECODES, OURS, PEERS, PRECISIONS, UNPACKED, Subject, settings, subjects
from pthserve.bench.load import Round

Step = tuple[Key, Callable[[], Sample]]
Say = Callable[[str], None]


def throughput(answered: Round) -> float:
    """Answers a second."""
    return answered.throughput


def latency(answered: Round) -> float:
    """Seconds, the median."""
    return float(answered.quantiles()[0])


@dataclass(frozen=True, slots=True)
class Scenario:
    """So many clients that send photos of a kind to each of `subjects`, and what of it counts."""

    clients: int
    photos: str
    subjects: tuple[str, ...]
    value: Callable[[Round], float] = throughput


SCENARIOS = {
    "8 clients": Scenario(8, "small", (*OURS, UNPACKED, *PEERS)),
    "64 clients": Scenario(64, "small", tuple(f"{precision} exact" for precision in PRECISIONS)),
    "1 client": Scenario(1, "small", (*OURS, *PEERS), latency),
    "8 clients, large photos": Scenario(8, "large", ("auto fast", *PEERS)),
}


class Run:
    """Services and bare models, from their start to their end.

    folder: for weights, photos and logs. say: is told what is being done.
    """

    def __init__(self, folder: Path, durations: Durations, say: Say) -> None:
        self.findings = Findings(Machine.this())
        self._durations = durations
        self._end = time.monotonic() + durations.budget
        self._say = say
        self._folder = folder
        self._stack = ExitStack()
        self._bare: dict[str, ProcessPoolExecutor] = {}
        self._services: dict[str, tuple[Process, int]] = {}

    def __call__(self) -> Findings:
        """Measure everything."""
        with self._stack:
            self._say("making weights and photos")
            material = Material.make(self._folder)
            for precision in PRECISIONS:
                self._say(f"loading {precision}")
                worker = self._stack.enter_context(bare.worker(settings(material, precision)))
                self.findings.plans[precision] = worker.submit(bare.plan).result()
                self._bare[precision] = worker
            for subject in subjects(
                material, {name: plan.precision for name, plan in self.findings.plans.items()}
            ):
                self._start(subject)
            for number in range(self._durations.repeats):
                if number and time.monotonic() > self._end:
                    break
                self._say(f"repeat {number + 1} of {self._durations.repeats}")
                self.findings.repeats.append(
                    {key: self._quietest(once) for key, once in self._steps(material)}
                )
            for name in OURS:
                self._say(f"idling {name}")
                once = partial(measure.idle, self._services[name][0], self._durations.idle)
                self.findings.idle[name] = self._quietest(once)
        return self.findings

    def _start(self, subject: Subject) -> None:
        self._say(f"starting {subject.name}")
        port = free_port()
        argv = [word.format(port=port) for word in subject.argv]
        log = self._folder / f"{subject.name}.log"
        process = self._stack.enter_context(Process(subject.name, argv, log))
        seconds = process.ready(f"http://127.0.0.1:{port}{subject.ready}")
        self.findings.starts[subject.name] = Start(seconds, process.memory())
        process.sleep()
        self._services[subject.name] = process, port

    def _quietest(self, once: Callable[[], Sample]) -> Sample:
        return quietest(once, self._durations.tries if time.monotonic() < self._end else 1)

    def _steps(self, material: Material) -> Iterator[Step]:
        seconds = self._durations.bare
        for how, size in product(DECODES, SIZES):
            call = partial(bare.decode, material.photos[size], how, seconds)
            yield (f"decode {how}", size), self._bare_step("fp32", call)
        for precision in PRECISIONS:
            for batch in bare.BATCHES:
                yield (
                    (f"forward {precision}", str(batch)),
                    self._bare_step(precision, partial(bare.forward, batch, seconds)),
                )
        for name, scenario in SCENARIOS.items():
            for subject in scenario.subjects:
                process, port = self._services[subject]
                yield (
                    (subject, name),
                    partial(
                        measure.loaded,
                        process,
                        port,
                        material.photos[scenario.photos],
                        scenario.clients,
                        scenario.value,
                        self._durations,
                    ),
                )

    def _bare_step(self, precision: str, call: Callable[[], bare.Timed]) -> Callable[[], Sample]:
        worker = self._bare[precision]
        return lambda: measure.bare(lambda: worker.submit(call).result())
