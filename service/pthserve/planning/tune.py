"""Tune: measure what this machine can run a model with, and keep what serves most images.

The guard: a candidate counts only if it answers the proof images as fp32 PyTorch does.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Engine
from pthserve.engines.cpu import cpu
from pthserve.errors import EngineError
from pthserve.images.preprocess import Pixels
from pthserve.images.spec import Spec
from pthserve.options import ModelOptions
from pthserve.planning.agreement import prove
from pthserve.planning.candidates import Candidate, Sources
from pthserve.planning.plan import Plan, Trial
from pthserve.planning.plan_files import cache_file, fits, library, read, write
from pthserve.tasks.base import Task
from pthserve.tasks.classification import CLASSIFICATION

if TYPE_CHECKING:
    from torch import nn

BATCHES = (1, 2, 4, 8, 16, 32)
"""Batch sizes that the winner is measured at; the others are at COMPARED alone."""
COMPARED = (1, 8)

NOTICEABLE = 1.03
"""How many times better something must be to be worth a larger batch or another engine."""
LONE_CLIENT = 1.1
"""How many times longer than before a lone client may wait for the sake of throughput."""
DECODE_SECONDS = 0.003
"""CPU time to decode and resize a photo of 500 x 375 pixels, on the cores that the forward pass shares."""
LONGEST_PASS = 0.25
"""Seconds; no batch is made larger than what is computed in them."""
FEWEST_BITS = ("int8", "bf16", "fp16", "fp32")
"""Precisions by how quick they are expected to be on a CPU that computes them natively."""
SLICE = 0.3
"""Seconds that one measurement takes."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Run:
    """A candidate whose answers agree, and its images a second by batch size.

    difference: largest from the reference, see `Agreement`. cpus: how many it shares with the decoders.
    """

    candidate: Candidate
    engine: Engine
    difference: float
    cpus: int
    rates: dict[int, float] = field(default_factory=dict)

    def measure(self, images: Pixels, sizes: Sequence[int], end: float) -> None:
        """Fill in the rates at `sizes`, smallest first, until the clock says `end`."""
        for size in sizes:
            if size in self.rates:
                continue
            if time.monotonic() > end or (self.rates and size / self.rates[1] > LONGEST_PASS):
                return
            batch = np.resize(images, (size, *images.shape[1:]))
            self.rates[size] = size / _seconds(self.engine, batch, end)

    @property
    def batch(self) -> int:
        """The smallest batch that no larger one beats noticeably."""
        best = 1
        for size in sorted(self.rates):
            if self.rates[size] > NOTICEABLE * self.rates[best]:
                best = size
        return best

    @property
    def served(self) -> float:
        """Images a second at saturation: what the engine computes, or what the CPUs do beside decoding."""
        rate, (*_, device, threads) = self.rates[self.batch], self.candidate
        return rate if device != "cpu" else min(rate, self.cpus / (threads / rate + DECODE_SECONDS))

    def beats(self, other: "Run") -> bool:
        """Whether it serves noticeably more images than `other`, and keeps no lone client waiting for it."""
        if not (self.rates and other.rates):
            return False
        waits, before = (DECODE_SECONDS + 1 / run.rates[1] for run in (self, other))
        return self.served > NOTICEABLE * other.served and waits < LONE_CLIENT * before

    def trials(self) -> list[Trial]:
        """What was measured, for the plan."""
        engine, precision, _, threads = self.candidate
        rates = self.rates or {1: 0.0}
        return [
            Trial(engine, precision, threads, size, round(rate, 1), self.difference, agrees=True)
            for size, rate in sorted(rates.items())
        ]


def tune(
    module: "nn.Module | None",
    spec: Spec,
    digest: str,
    images: Pixels,
    settings: ModelOptions,
    *,
    task: Task = CLASSIFICATION,
    graph: Any = None,
    quantized: Any = None,
    known: Plan | None = None,
    expected: NDArray[np.float32] | None = None,
) -> tuple[Plan, Engine]:
    """The plan for a model on this machine, and the engine that runs it.

    module: the model, in eval mode; or None where there is only `graph`, as in a pack.
    images: uint8 (n, height, width, channels), on which a candidate must answer as the reference does.
    task: by which answers are compared.
    expected: the task's scores of what the reference says of them, float32 (n, outputs). Where that is left
    out it is asked: PyTorch at fp32, or OpenVINO at fp32 where there is no module.
    graph, quantized: what `engine.openvino.convert` and `quantize` made of the module, where that is done.
    `auto` takes int8 only where `quantized` is given.
    known: a plan that a pack brings.

    A plan from `settings.plan`, from `settings.cache_dir` or from `known` that was measured with these
    weights on such a processor is taken as it is. Otherwise `settings.tune_budget` seconds are spent on
    measuring; what every engine of a kind needs, conversion and calibration, is not counted. With a budget of
    0 the first candidate that agrees is the plan; where there is no module, the one that computes with the
    fewest bits goes first.

    Raises:
        EngineError: nothing that the settings allow runs the model, or its answers disagree.
    """
    sources = Sources(module, spec, settings, task, graph=graph, quantized=quantized)
    cached = cache_file(digest, settings)
    for plan in (settings.plan and read(settings.plan), _if_readable(cached), known):
        if plan and fits(plan, digest, settings, task.name):
            candidate = Candidate(plan.engine, plan.precision, plan.device, plan.threads)
            sources.prepare([candidate])
            return replace(plan, max_batch=settings.max_batch or plan.max_batch), sources.engine(candidate)
    if settings.plan:
        _log.warning("%s does not fit these weights, this processor or these settings", settings.plan)
    plan, engine = _measured(sources, digest, images, expected)
    if known and known.digest and not plan.digest:
        plan = replace(
            plan, reason=f"{plan.reason}; what the pack's plan says is for {known.cpu}, {known.library}"
        )
    if cached and plan.digest:
        write(plan, cached)
    return plan, engine


@dataclass(slots=True)
class Contest:
    """Candidates against each other, until the clock says `end`.

    images: uint8 (n, height, width, channels); expected: their scores by the reference.
    runs: of all that agree; the engine of the best alone is open. failed: the others.
    """

    sources: Sources
    images: Pixels
    expected: NDArray[np.float32]
    end: float
    best: Run | None = None
    runs: list[Run] = field(default_factory=list)
    failed: list[Trial] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether there is no time for another candidate; there is, as long as none has agreed."""
        return self.best is not None and time.monotonic() > self.end

    def enter(self, candidate: Candidate) -> None:
        """Make the engine of `candidate`, hold it to the guard, measure it, and keep it if it is the best."""
        settings = self.sources.settings
        try:
            engine = self.sources.engine(candidate)
        except EngineError as error:
            self.failed.append(_failed(candidate, str(error)))
            return
        proof = prove(self.sources.task, engine, self.images, self.expected, settings.tolerance)
        if not proof.agrees:
            self.failed.append(_failed(candidate, proof.disagreements[0], proof.difference))
            engine.close()
            return
        run = Run(candidate, engine, proof.difference, settings.cpus)
        end = self.end
        if self.best is None and settings.tune_budget:  # a plan of nothing measured is of no use to anybody
            end = max(end, time.monotonic() + SLICE)
        run.measure(self.images, _sizes(COMPARED, settings), end)
        self.runs.append(run)
        if self.best is None or run.beats(self.best):
            self.best, run = run, self.best or run
        if run is not self.best:
            run.engine.close()


def _measured(
    sources: Sources, digest: str, images: Pixels, expected: NDArray[np.float32] | None
) -> tuple[Plan, Engine]:
    settings = sources.settings
    candidates = sources.candidates()
    if sources.module is None and not settings.tune_budget:
        candidates.sort(key=lambda candidate: FEWEST_BITS.index(candidate.precision))
    failed: list[Trial] = []
    try:
        sources.prepare(candidates)
    except EngineError as error:
        failed = [
            _failed(candidate, str(error)) for candidate in candidates if candidate.engine == "openvino"
        ]
        candidates = [candidate for candidate in candidates if candidate.engine != "openvino"]
    if expected is None:
        expected = sources.expected(images)

    end = time.monotonic() + settings.tune_budget
    contest = Contest(sources, images, expected, end, failed=failed)
    while candidates and not contest.over:
        contest.enter(candidates.pop(0))
    best = contest.best
    if best is None:
        tried = "; ".join(f"{trial.engine} {trial.precision}: {trial.note}" for trial in contest.failed)
        raise EngineError(f"no engine can run this model with these settings. {tried}")
    if best.candidate.device == "cpu" and best.candidate.threads > 1 and not contest.over:
        contest.enter(best.candidate._replace(threads=best.candidate.threads // 2))
        best = contest.best or best
    best.measure(images, _sizes(BATCHES, settings), end)

    trials = (*(trial for run in contest.runs for trial in run.trials()), *contest.failed)
    engine, precision, device, threads = best.candidate
    plan = Plan(
        engine, precision, device, threads, settings.max_batch or 8, task=sources.task.name, trials=trials
    )
    if not best.rates:
        reason = f"{best.candidate}, not measured: the first candidate that agrees with the reference"
        return replace(plan, reason=reason), best.engine
    plan = replace(
        plan,
        max_batch=settings.max_batch or best.batch,
        reason=_reason(best, contest.runs, candidates),
        digest=digest,
        cpu=cpu(settings.cpus),
        library=library(engine),
    )
    return plan, best.engine


def _reason(best: Run, runs: Sequence[Run], untried: Sequence[Candidate]) -> str:
    """Why `best` won, in words."""
    words = f"{best.candidate}: {best.rates[best.batch]:.0f} images per second in batches of {best.batch}"
    others = [run for run in runs if run is not best and run.rates]
    if others:
        second = max(others, key=lambda run: run.served)
        words += f"; {second.candidate}: {second.rates[second.batch]:.0f} in batches of {second.batch}"
    if untried:
        words += f"; no time for {', '.join(map(str, untried))}"
    return words


def _failed(candidate: Candidate, note: str, difference: float = 0.0) -> Trial:
    engine, precision, _, threads = candidate
    return Trial(engine, precision, threads, 1, 0.0, difference, agrees=False, note=note)


def _sizes(sizes: Sequence[int], settings: ModelOptions) -> list[int]:
    return [size for size in sizes if size <= (settings.max_batch or size)]


def _seconds(engine: Engine, batch: Pixels, end: float) -> float:
    """The least that a pass over `batch` takes: what others do on the machine can only add to it."""
    engine(batch)
    stop = min(time.monotonic() + SLICE, end)
    passes: list[float] = []
    while len(passes) < 3 or time.monotonic() < stop:
        start = time.perf_counter()
        engine(batch)
        passes.append(time.perf_counter() - start)
    return min(passes)


def _if_readable(path: Path | None) -> Plan | None:
    try:
        return read(path) if path else None
    except EngineError:
        return None
