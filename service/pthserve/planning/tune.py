"""Tune: measure the candidates on this machine and choose the one that serves most images.

A candidate counts only if its answers agree with those of fp32 PyTorch; see `agreement`.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pthserve.engines.base import Engine
from pthserve.engines.cpu import cpu, library
from pthserve.errors import EngineError
from pthserve.images.preprocess import Pixels
from pthserve.options import ModelOptions
from pthserve.planning.candidates import LARGE_BATCH, Candidate
from pthserve.planning.examiner import Examiner
from pthserve.planning.plan import Plan, Trial
from pthserve.planning.plan_files import cache_file, fits, read, write

BATCHES = (1, 2, 4, 8, 16, LARGE_BATCH)
"""Batch sizes at which the best candidate is measured."""
COMPARED = (1, 8)
"""Batch sizes at which all candidates are measured."""

NOTICEABLE = 1.03
"""Factor by which throughput must improve to justify a larger batch or another engine."""
LONE_CLIENT = 1.1
"""Factor by which the latency of a single client may increase for more throughput."""
DECODE_SECONDS = 0.003
"""CPU time to decode and resize a photo of 500 x 375 pixels, on the cores that the forward pass shares."""
LONGEST_PASS = 0.25
"""Maximum duration of a forward pass in seconds; larger batches are not considered."""
FEWEST_BITS = ("int8", "bf16", "fp16", "tf32", "fp32")
"""Precisions, the fastest first on a CPU that supports them natively."""
SLICE = 0.3
"""Duration of one measurement in seconds."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Budget:
    """Time for measurements, without the time for comparing answers.

    end: the time of `time.monotonic` at which it is over.
    """

    end: float

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() > self.end

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens in this context."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.end += time.monotonic() - start


@dataclass(slots=True)
class Measurement:
    """A candidate that agrees with the reference, and how fast it is.

    Attributes:
        candidate: The configuration.
        engine: The engine; open only while the candidate is the best one.
        difference: Largest difference from the reference; see `Evidence`.
        cpus: Number of CPUs that the engine shares with the decoders.
        rates: Images per second by batch size.
        interrupted: Whether the time was over before every size was measured.
    """

    candidate: Candidate
    engine: Engine
    difference: float
    cpus: int
    rates: dict[int, float] = field(default_factory=dict)
    interrupted: bool = False

    def measure(self, images: Pixels, sizes: Sequence[int], budget: Budget) -> None:
        """Measure the rates at `sizes`, smallest first, until the budget is over."""
        self.interrupted = False
        for size in sizes:
            if size in self.rates:
                continue
            if self.rates and size / self.rates[1] > LONGEST_PASS:
                return
            if budget.over:
                self.interrupted = True
                return
            batch = np.resize(images, (size, *images.shape[1:]))
            self.rates[size] = size / pass_seconds(self.engine, batch, budget.end)

    @property
    def batch(self) -> int:
        """The smallest batch size that no larger one beats noticeably."""
        best = 1
        for size in sorted(self.rates):
            if self.rates[size] > NOTICEABLE * self.rates[best]:
                best = size
        return best

    def max_batch(self, unmeasured: int) -> int:
        """`batch`; or `unmeasured` where that is larger and only the time kept it from being measured."""
        growing = self.interrupted and self.batch == max(self.rates)
        return max(self.batch, unmeasured) if growing else self.batch

    @property
    def served(self) -> float:
        """Images per second at saturation: the rate of the engine, or of the CPUs with decoding."""
        rate, (*_, device, threads) = self.rates[self.batch], self.candidate
        return rate if device != "cpu" else min(rate, self.cpus / (threads / rate + DECODE_SECONDS))

    def beats(self, other: "Measurement") -> bool:
        """Whether it serves noticeably more images than `other` without delaying a single client."""
        if not (self.rates and other.rates):
            return False
        latency, previous = (DECODE_SECONDS + 1 / one.rates[1] for one in (self, other))
        return self.served > NOTICEABLE * other.served and latency < LONE_CLIENT * previous

    def trials(self) -> list[Trial]:
        """Convert the measurement for the plan: one trial per batch size."""
        engine, precision, _, threads = self.candidate
        rates = self.rates or {1: 0.0}
        return [
            Trial(engine, precision, threads, size, round(rate, 1), self.difference, agrees=True)
            for size, rate in sorted(rates.items())
        ]


def tune(examiner: Examiner, digest: str, *, known: Plan | None = None) -> tuple[Plan, Engine]:
    """Choose a plan for a model on this machine, and make the engine that runs it.

    A plan from `options.plan`, from `options.cache_dir` or `known` is used if it was measured for these
    weights on such a processor. Otherwise candidates are measured for `options.tune_budget` seconds, not
    counting conversion, calibration and the comparison with fp32 PyTorch. With a budget of 0, the first
    candidate that agrees with the reference is chosen; for a packed model, the one with the fewest bits is
    tried first.

    Args:
        examiner: Has the engines of the model, and compares them with fp32 PyTorch.
        digest: SHA-256 of the weights.
        known: The plan of a packed model.

    Raises:
        EngineError: No candidate runs the model and agrees with the reference.
    """
    engines = examiner.engines
    options = engines.options
    cached = cache_file(digest, options)
    photos = None if options.validation is None else examiner.crops.origin.digest
    for plan in (options.plan and read(options.plan), _read_if_valid(cached), known):
        runs = engines.module is not None or (plan and plan.engine == "openvino")
        if plan and runs and fits(plan, digest, options, engines.task.name, photos):
            candidate = Candidate(plan.engine, plan.precision, plan.device, plan.threads)
            examiner.prepare([candidate])
            return replace(plan, max_batch=options.max_batch or plan.max_batch), engines.make(candidate)
    if options.plan:
        _log.warning("%s does not fit these weights, this processor or these settings", options.plan)
    plan, engine = _choose(examiner, digest)
    if known and known.digest and not plan.digest:
        plan = replace(
            plan, reason=f"{plan.reason}; the plan of the pack is for {known.cpu}, {known.library}"
        )
    if cached and plan.digest:
        write(plan, cached)
    return plan, engine


def _choose(examiner: Examiner, digest: str) -> tuple[Plan, Engine]:
    """Measure the candidates, and return the plan and the open engine of the best one."""
    engines = examiner.engines
    options = engines.options
    candidates = engines.candidates()
    if engines.module is None and not options.tune_budget:
        candidates.sort(key=lambda candidate: FEWEST_BITS.index(candidate.precision))
    failed: list[Trial] = []
    try:
        examiner.prepare(candidates)
    except EngineError as error:
        failed = [_failed(one, str(error)) for one in candidates if one.engine == "openvino"]
        candidates = [one for one in candidates if one.engine != "openvino"]
    images = next(iter(examiner.crops))

    budget = Budget(time.monotonic() + options.tune_budget)
    best: Measurement | None = None
    measured: list[Measurement] = []
    halved = False
    while best is None or not budget.over:
        if candidates:
            candidate = candidates.pop(0)
        elif best and not halved and best.candidate.device == "cpu" and best.candidate.threads > 1:
            halved = True
            candidate = best.candidate._replace(threads=best.candidate.threads // 2)
        else:
            break
        result = _measure(examiner, candidate, images, budget, required=best is None)
        if isinstance(result, Trial):
            failed.append(result)
        else:
            measured.append(result)
            best = _better(result, best)
    if best is None:
        notes = "; ".join(f"{trial.engine} {trial.precision}: {trial.note}" for trial in failed)
        raise EngineError(f"no engine can run this model with these settings. {notes}")
    best.measure(images, _sizes(BATCHES, options), budget)

    trials = (*(trial for one in measured for trial in one.trials()), *failed)
    engine, precision, device, threads = best.candidate
    plan = Plan(
        *(engine, precision, device, threads),
        options.max_batch or engines.unmeasured_batch,
        task=engines.task.name,
        trials=trials,
        evidence=tuple(examiner.evidence.values()),
    )
    if not best.rates:
        reason = f"{best.candidate}, not measured: the first candidate that agrees with the reference"
        return replace(plan, reason=reason), best.engine
    plan = replace(
        plan,
        max_batch=options.max_batch or best.max_batch(engines.unmeasured_batch),
        reason=_reason(best, measured, candidates),
        digest=digest,
        cpu=cpu(options.cpus),
        library=library(engine),
    )
    return plan, best.engine


def _measure(
    examiner: Examiner,
    candidate: Candidate,
    images: Pixels,
    budget: Budget,
    *,
    required: bool,
) -> Measurement | Trial:
    """Make the engine of a candidate and measure it, or return why it failed.

    Args:
        required: Measure it even if the budget is over: a plan without any measurement is not kept.
    """
    options = examiner.engines.options
    try:
        engine = examiner.engines.make(candidate)
    except EngineError as error:
        return _failed(candidate, str(error))
    with budget.paused():
        refusal = examiner.refusal(engine)
    difference = examiner.evidence[engine.name, engine.precision].largest
    if refusal:
        engine.close()
        return _failed(candidate, refusal, difference)
    measurement = Measurement(candidate, engine, difference, options.cpus)
    if required and options.tune_budget:
        budget.end = max(budget.end, time.monotonic() + SLICE)
    measurement.measure(images, _sizes(COMPARED, options), budget)
    return measurement


def _better(new: Measurement, best: Measurement | None) -> Measurement:
    """Return the better of two measurements, and close the engine of the other."""
    if best is None:
        return new
    better, worse = (new, best) if new.beats(best) else (best, new)
    worse.engine.close()
    return better


def _reason(best: Measurement, measured: Sequence[Measurement], skipped: Sequence[Candidate]) -> str:
    """Explain why `best` was chosen."""
    text = f"{best.candidate}: {best.rates[best.batch]:.0f} images per second in batches of {best.batch}"
    others = [one for one in measured if one is not best and one.rates]
    if others:
        second = max(others, key=lambda one: one.served)
        text += f"; {second.candidate}: {second.rates[second.batch]:.0f} in batches of {second.batch}"
    missed = [*map(str, skipped), *["larger batches"] * best.interrupted]
    if missed:
        text += f"; no time for {', '.join(missed)}"
    return text


def _failed(candidate: Candidate, note: str, difference: float = 0.0) -> Trial:
    engine, precision, _, threads = candidate
    return Trial(engine, precision, threads, 1, 0.0, difference, agrees=False, note=note)


def _sizes(sizes: Sequence[int], options: ModelOptions) -> list[int]:
    return [size for size in sizes if size <= (options.max_batch or size)]


def pass_seconds(engine: Engine, batch: Pixels, end: float = math.inf) -> float:
    """Return the shortest time of a forward pass: other load on the machine can only add to it.

    Args:
        end: The time at which to stop, if SLICE is not over before.
    """
    engine(batch)
    stop = min(time.monotonic() + SLICE, end)
    passes: list[float] = []
    while len(passes) < 3 or time.monotonic() < stop:
        start = time.perf_counter()
        engine(batch)
        passes.append(time.perf_counter() - start)
    return min(passes)


def _read_if_valid(path: Path | None) -> Plan | None:
    try:
        return read(path) if path else None
    except EngineError:
        return None
