"""Run: everything that is measured, interleaved, so that what disturbs the machine disturbs all alike."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks import app, bare, measure
from benchmarks.findings import Findings, Key, Start
from benchmarks.machine import Machine
from benchmarks.material import SIZES, Material
from benchmarks.measure import QUICK, Durations, Sample, quietest
from benchmarks.models import PRECISIONS, Packed, Precision
from benchmarks.process import Process
from benchmarks.subjects import (
    DECODES,
    OURS,
    PEERS,
    PEERS_OF_DEMO,
    UNPACKED,
    Subject,
    settings,
    started,
    subjects,
)
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
    "8 clients": Scenario(8, "small", (*OURS, UNPACKED, *PEERS, *PEERS_OF_DEMO)),
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
        self._end = 0.0
        self._say = say
        self._folder = folder
        self._stack = ExitStack()
        self._bare: dict[str, ProcessPoolExecutor] = {}
        self._services: dict[str, tuple[Process, int]] = {}

    def __call__(self) -> Findings:
        """Measure everything."""
        with self._stack:
            self._say("making weights and photos")
            material = Material.make(self._folder, quick=self._durations is QUICK)
            for precision in PRECISIONS:
                self._load(precision, material.resnet18, precision, material.cache)
            for model, packed in material.others.items():
                for precision in PRECISIONS:
                    self._load(f"{model} {precision}", packed, precision, material.cache)
            for subject in subjects(
                material, {name: plan.precision for name, plan in self.findings.plans.items()}
            ):
                self._start(subject)
            self._end = time.monotonic() + self._durations.budget
            for number in range(self._durations.repeats):
                if number and time.monotonic() > self._end:
                    break
                self._say(f"repeat {number + 1} of {self._durations.repeats}")
                self.findings.repeats.append(
                    {key: self._quietest(once) for key, once in self._steps(material)}
                )
            for name in OURS:
                if name not in self._services:
                    continue
                self._say(f"idling {name}")
                once = partial(measure.idle, self._services[name][0], self._durations.idle)
                self.findings.idle[name] = self._quietest(once)
        return self.findings

    def _load(self, name: str, packed: Packed, precision: Precision, cache: Path) -> None:
        """Have a process with that model, or note why there is none."""
        if precision not in packed.packs:
            self._say(f"{name} is refused: {packed.refused}")
            self.findings.refused[name] = packed.refused
            return
        self._say(f"loading {name}")
        worker = self._stack.enter_context(bare.worker(settings(packed, precision, cache)))
        self.findings.plans[name] = worker.submit(bare.plan).result()
        self._bare[name] = worker

    def _start(self, subject: Subject) -> None:
        self._say(f"starting {subject.name}")
        process, port, seconds = started(subject, self._folder, self._stack)
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
        for name in self._bare:
            for batch in bare.BATCHES:
                yield (
                    (f"forward {name}", str(batch)),
                    self._bare_step(name, partial(bare.forward, batch, seconds)),
                )
        for name, scenario in SCENARIOS.items():
            for subject in scenario.subjects:
                if subject in self._services:
                    yield (subject, name), self._loaded(subject, scenario, material.photos[scenario.photos])
        yield from self._of_models(material)

    def _of_models(self, material: Material) -> Iterator[Step]:
        """The other models, and benchmark_app with all."""
        seconds = self._durations.bare
        for model, packed in {"": material.resnet18, **material.others}.items():
            if model:
                call = partial(bare.decode, packed.photos, "exact", seconds)
                yield ("decode exact", model), self._bare_step(f"{model} fp32", call)
            for precision, pack in packed.packs.items():
                name = f"{model} {precision}".strip()
                computes = self.findings.plans[name].precision
                shape = self._bare[name].submit(bare.tensor_shape).result()
                cpus = self.findings.machine.cpus
                call = partial(app.images, pack, computes, shape, cpus, 2 * seconds)
                yield ("benchmark_app", name), partial(measure.bare, call)
                if model:
                    yield (name, "8 clients"), self._loaded(name, SCENARIOS["8 clients"], packed.photos)

    def _loaded(self, subject: str, scenario: Scenario, photos: list[Path]) -> Callable[[], Sample]:
        process, port = self._services[subject]
        value, durations = scenario.value, self._durations
        return lambda: measure.loaded(process, port, photos, scenario.clients, value, durations)

    def _bare_step(self, precision: str, call: Callable[[], bare.Timed]) -> Callable[[], Sample]:
        worker = self._bare[precision]
        return lambda: measure.bare(lambda: worker.submit(call).result())
