"""Tune: measure the candidates on this machine and choose the one that serves most images.

A candidate counts only if its answers to the proof images agree with fp32 PyTorch.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Engine
from pthserve.engines.cpu import cpu
from pthserve.errors import EngineError
from pthserve.images.preprocess import Pixels
from pthserve.options import ModelOptions
from pthserve.planning.agreement import compare
from pthserve.planning.candidates import Candidate, EngineFactory
from pthserve.planning.plan import Plan, Trial
from pthserve.planning.plan_files import cache_file, fits, library, read, write

BATCHES = (1, 2, 4, 8, 16, 32)
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
REFERENCE = ("torch", "fp32", "cpu")
"""Engine, precision and device that all others must agree with."""
SLICE = 0.3
"""Duration of one measurement in seconds."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Measurement:
    """A candidate that agrees with the reference, and how fast it is.

    Attributes:
        candidate: The configuration.
        engine: The engine; open only while the candidate is the best one.
        difference: Largest difference from the reference; see `Agreement`.
        cpus: Number of CPUs that the engine shares with the decoders.
        rates: Images per second by batch size.
    """

    candidate: Candidate
    engine: Engine
    difference: float
    cpus: int
    rates: dict[int, float] = field(default_factory=dict)

    def measure(self, images: Pixels, sizes: Sequence[int], end: float) -> None:
        """Measure the rates at `sizes`, smallest first, until the time `end`."""
        for size in sizes:
            if size in self.rates:
                continue
            if time.monotonic() > end or (self.rates and size / self.rates[1] > LONGEST_PASS):
                return
            batch = np.resize(images, (size, *images.shape[1:]))
            self.rates[size] = size / _seconds(self.engine, batch, end)

    @property
    def batch(self) -> int:
        """The smallest batch size that no larger one beats noticeably."""
        best = 1
        for size in sorted(self.rates):
            if self.rates[size] > NOTICEABLE * self.rates[best]:
                best = size
        return best

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


def tune(
    engines: EngineFactory,
    digest: str,
    images: Pixels,
    *,
    known: Plan | None = None,
    reference: NDArray[np.float32] | None = None,
) -> tuple[Plan, Engine]:
    """Choose a plan for a model on this machine, and make the engine that runs it.

    A plan from `options.plan`, from `options.cache_dir` or `known` is used if it was measured for these
    weights on such a processor. Otherwise candidates are measured for `options.tune_budget` seconds, not
    counting conversion and calibration. With a budget of 0, the first candidate that agrees with the
    reference is chosen; for a packed model, the one with the fewest bits is tried first.

    Args:
        engines: Makes the engines of the model.
        digest: SHA-256 of the weights.
        images: Proof images, uint8 (n, height, width, channels), on which candidates must agree with the
            reference.
        known: The plan of a packed model.
        reference: The scores of the reference on `images`, float32 (n, outputs); computed if None.

    Raises:
        EngineError: No candidate runs the model and agrees with the reference.
    """
    options = engines.options
    cached = cache_file(digest, options)
    for plan in (options.plan and read(options.plan), _read_if_valid(cached), known):
        if plan and fits(plan, digest, options, engines.task.name):
            candidate = Candidate(plan.engine, plan.precision, plan.device, plan.threads)
            engines.prepare([candidate])
            return replace(plan, max_batch=options.max_batch or plan.max_batch), engines.make(candidate)
    if options.plan:
        _log.warning("%s does not fit these weights, this processor or these settings", options.plan)
    plan, engine = _choose(engines, digest, images, reference)
    if known and known.digest and not plan.digest:
        plan = replace(
            plan, reason=f"{plan.reason}; the plan of the pack is for {known.cpu}, {known.library}"
        )
    if cached and plan.digest:
        write(plan, cached)
    return plan, engine


def _choose(
    engines: EngineFactory, digest: str, images: Pixels, reference: NDArray[np.float32] | None
) -> tuple[Plan, Engine]:
    """Measure the candidates, and return the plan and the open engine of the best one."""
    options = engines.options
    candidates = engines.candidates()
    if engines.module is None and not options.tune_budget:
        candidates.sort(key=lambda candidate: FEWEST_BITS.index(candidate.precision))
    failed: list[Trial] = []
    try:
        engines.prepare(candidates)
    except EngineError as error:
        failed = [_failed(one, str(error)) for one in candidates if one.engine == "openvino"]
        candidates = [one for one in candidates if one.engine != "openvino"]
    images, reference = _proof(engines, candidates, images, reference)

    end = time.monotonic() + options.tune_budget
    best: Measurement | None = None
    measured: list[Measurement] = []
    halved = False
    while best is None or time.monotonic() <= end:
        if candidates:
            candidate = candidates.pop(0)
        elif best and not halved and best.candidate.device == "cpu" and best.candidate.threads > 1:
            halved = True
            candidate = best.candidate._replace(threads=best.candidate.threads // 2)
        else:
            break
        result = _measure(engines, candidate, images, reference, end, required=best is None)
        if isinstance(result, Trial):
            failed.append(result)
        else:
            measured.append(result)
            best = _better(result, best)
    if best is None:
        notes = "; ".join(f"{trial.engine} {trial.precision}: {trial.note}" for trial in failed)
        raise EngineError(f"no engine can run this model with these settings. {notes}")
    best.measure(images, _sizes(BATCHES, options), end)

    trials = (*(trial for one in measured for trial in one.trials()), *failed)
    engine, precision, device, threads = best.candidate
    plan = Plan(
        *(engine, precision, device, threads),
        options.max_batch or engines.unmeasured_batch,
        task=engines.task.name,
        trials=trials,
    )
    if not best.rates:
        reason = f"{best.candidate}, not measured: the first candidate that agrees with the reference"
        return replace(plan, reason=reason), best.engine
    plan = replace(
        plan,
        max_batch=options.max_batch or best.batch,
        reason=_reason(best, measured, candidates),
        digest=digest,
        cpu=cpu(options.cpus),
        library=library(engine),
    )
    return plan, best.engine


def _proof(
    engines: EngineFactory,
    candidates: Sequence[Candidate],
    images: Pixels,
    reference: NDArray[np.float32] | None,
) -> tuple[Pixels, NDArray[np.float32]]:
    """The images that `candidates` are held to, and what the reference says of them."""
    if [(one.engine, one.precision, one.device) for one in candidates] == [REFERENCE]:
        images, reference = images[:1], None  # it agrees with itself
    return images, engines.reference(images) if reference is None else reference


def _measure(
    engines: EngineFactory,
    candidate: Candidate,
    images: Pixels,
    reference: NDArray[np.float32],
    end: float,
    *,
    required: bool,
) -> Measurement | Trial:
    """Make the engine of a candidate and measure it until `end`, or return why it failed.

    Args:
        required: Measure it even if the time is over: a plan without any measurement is not kept.
    """
    options = engines.options
    try:
        engine = engines.make(candidate)
    except EngineError as error:
        return _failed(candidate, str(error))
    agreement = compare(engines.task, engine, images, reference, options.tolerance)
    if not agreement.agrees:
        engine.close()
        return _failed(candidate, agreement.disagreements[0], agreement.difference)
    measurement = Measurement(candidate, engine, agreement.difference, options.cpus)
    if required and options.tune_budget:
        end = max(end, time.monotonic() + SLICE)
    measurement.measure(images, _sizes(COMPARED, options), end)
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
    if skipped:
        text += f"; no time for {', '.join(map(str, skipped))}"
    return text


def _failed(candidate: Candidate, note: str, difference: float = 0.0) -> Trial:
    engine, precision, _, threads = candidate
    return Trial(engine, precision, threads, 1, 0.0, difference, agrees=False, note=note)


def _sizes(sizes: Sequence[int], options: ModelOptions) -> list[int]:
    return [size for size in sizes if size <= (options.max_batch or size)]


def _seconds(engine: Engine, batch: Pixels, end: float) -> float:
    """Return the shortest time of a forward pass: other load on the machine can only add to it."""
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
