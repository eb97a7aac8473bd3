"""Run: everything that is measured, interleaved, so that what disturbs the machine disturbs all alike."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from benchmarks import bare
from benchmarks.material import SIZES, Material
from benchmarks.measure import Durations, Sample, quietest
from benchmarks.process import Process, free_port
from benchmarks.subjects import DECODES, OURS, PEERS, PRECISIONS, Subject, packed, settings, subjects, untuned
from pthserve.bench.load import Round
from pthserve.model.plan import Plan

Key = tuple[str, str]
"""Who, and what of them."""
Values = dict[Key, float]
"""By subject and scenario; or by precision and `forward` or `forward of one`; or by decode and size."""
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
    "8 clients": Scenario(8, "small", (*OURS, *PEERS)),
    "64 clients": Scenario(64, "small", OURS),
    "1 client": Scenario(1, "small", (*OURS, *PEERS), latency),
    "8 clients, large photos": Scenario(8, "large", ("auto fast", *PEERS)),
}


@dataclass(slots=True)
class Findings:
    """What a run found.

    plans: by precision. samples: a list a repeat. starts, memory, idle: seconds, MiB and cores by subject.
    """

    plans: dict[str, Plan] = field(default_factory=dict)
    repeats: list[dict[Key, Sample]] = field(default_factory=list)
    starts: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)

    def values(self) -> list[Values]:
        """The values alone, a repeat each."""
        return [{key: sample.value for key, sample in repeat.items()} for repeat in self.repeats]


class Run:
    """Services and bare models, from their start to their end."""

    def __init__(self, folder: Path, durations: Durations, say: Say) -> None:
        self.findings = Findings()
        self._durations = durations
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
                self._load(precision, material)
            for subject in subjects(material):
                self._start(subject)
            for number in range(self._durations.repeats):
                self._say(f"repeat {number + 1} of {self._durations.repeats}")
                self.findings.repeats.append(
                    {key: quietest(once, self._durations.tries) for key, once in self._steps(material)}
                )
            self._rest()
        with self._stack:
            for subject in (untuned(material), *packed(material, self._folder)):
                self._start(subject)
                self._rest_of(subject.name)
        return self.findings

    def _load(self, precision: str, material: Material) -> None:
        worker = self._stack.enter_context(bare.worker(settings(material, precision)))
        self.findings.plans[precision] = worker.submit(bare.plan).result()
        self._bare[precision] = worker

    def _start(self, subject: Subject) -> None:
        self._say(f"starting {subject.name}")
        port = free_port()
        argv = [word.format(port=port) for word in subject.argv]
        log = self._folder / f"{subject.name}.log"
        process = self._stack.enter_context(Process(subject.name, argv, log))
        self.findings.starts[subject.name] = process.ready(f"http://127.0.0.1:{port}{subject.ready}")
        process.sleep()
        self._services[subject.name] = process, port

    def _steps(self, material: Material) -> Iterator[Step]:
        seconds = self._durations.bare
        for how, size in product(DECODES, SIZES):
            yield (how, size), self._bare_step("fp32", bare.decode, material.photos[size], how, seconds)
        for precision in PRECISIONS:
            most = self.findings.plans[precision].max_batch
            for what, batch in (("forward", most), ("forward of one", 1)):
                yield (precision, what), self._bare_step(precision, bare.forward, batch, seconds)
        for name, scenario in SCENARIOS.items():
            for subject in scenario.subjects:
                yield (subject, name), self._load_step(subject, scenario, material)
