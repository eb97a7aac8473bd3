"""Settle: golden images decide what the file leaves open, where only one possibility gives their answers.

What is open may be the architecture, what was assumed of its layers, how images are preprocessed, and what
the outputs mean. Every combination is tried on the model itself, in float32, and dropped at the first image
that it gives another answer, so that most cost one forward pass.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pthserve.certainty import Inferred, Origin
from pthserve.errors import AmbiguousArchitecture, EngineError, PackError, RequestError
from pthserve.files.golden import Golden
from pthserve.images.preprocess import OWN_MAX_PIXELS, crop, normalise
from pthserve.images.spec import Spec
from pthserve.tasks.base import Outputs, Task

if TYPE_CHECKING:
    from pthserve.engines.openvino_engine import OpenVINOEngine
    from pthserve.zoos.base import Architecture

BUDGET = 2e12
"""Floating-point operations that it may cost: seconds on a processor, and the same result on each."""
IMAGES = 16
"""Most golden images that are looked at."""
PRECISE = 1e-3
"""Where probabilities have four decimals or more, the right combination is within this; others may be within
the tolerance too."""
_EVIDENCE = 2
"""Golden images with numbers that it takes to prefer something else to what was assumed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A way to read a file: an architecture, and what else is open.

    The first of `specs` and of `tasks` was assumed, or is stated where it is alone. inferred: what that task
    rests on.
    """

    found: "Architecture"
    specs: Sequence[Spec]
    tasks: Sequence[Task]
    inferred: Inferred


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """What is taken. inferred: by subject, what the golden images settled, and what the task rests on."""

    found: "Architecture"
    spec: Spec
    task: Task
    inferred: Mapping[str, Inferred]


@dataclass(frozen=True, slots=True, eq=False)
class _Value:
    """One value of what is open: see `Inferred`, and how the module gets it."""

    subject: str
    value: str
    setting: str
    apply: Callable[[], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Combination:
    """A value of each subject of a reading. choices: of what was assumed of the module."""

    reading: Reading
    choices: tuple[_Value, ...]
    spec: Spec
    task: Task

    @property
    def found(self) -> "Architecture":
        """The reading's."""
        return self.reading.found

    @property
    def values(self) -> dict[str, tuple[str, str]]:
        """By subject, the value, and the line of a card that states it."""
        return {
            **{one.subject: (one.value, one.setting) for one in self.choices},
            "preprocessing": (self.spec.words(), f"preprocessing: {self.spec.to_card()}"),
            "task": (self.task.name, f"task: {self.task.name}"),
        }

    def apply(self) -> None:
        """Give the module the values."""
        for one in self.choices:
            one.apply()


def settle(
    readings: Sequence[Reading],
    golden: Sequence[Golden],
    tolerance: float,
    ambiguous: AmbiguousArchitecture | None = None,
) -> Settled:
    """The reading that is taken, with its values; the module is changed to them.

    Args:
        readings: several where `ambiguous`: then no architecture was assumed.
        golden: those whose answers are the model's own are not looked at. Those that state no number, with
            which many values would agree, count for the architecture alone.
        tolerance: by how much a probability may differ.
        ambiguous: raised unless the golden images agree with exactly one of the readings.

    Raises:
        AmbiguousArchitecture: see `ambiguous`.
    """
    known = [one for one in golden if not one.recorded and (ambiguous or _numbers(one))][:IMAGES]
    enough = sum(bool(_numbers(one)) for one in known) >= _EVIDENCE
    trial = _Trial(known, tolerance)
    groups = [list(_combinations(reading)) for reading in readings]
    if ambiguous:
        groups = [_only(groups, trial, ambiguous, enough=enough)]
    ((assumed, *others),) = groups
    if not others or not any(map(_numbers, known)):
        chosen, subjects = assumed, set[str]()
    else:
        chosen, subjects = _decide([assumed, *others], trial, enough=enough)
    chosen.apply()
    settled = {"task": chosen.reading.inferred}
    for subject, (value, setting) in chosen.values.items():
        if subject in subjects:
            settled[subject] = Inferred(subject, value, Origin.GOLDEN, setting)
        if value != assumed.values[subject][0]:
            _log.warning("%s: %s, as only this gives the golden images their answers", subject, value)
    spec = replace(chosen.spec, assumed=chosen.spec.assumed and "preprocessing" not in settled)
    found = chosen.found
    if ambiguous:
        architecture = Inferred("architecture", found.name, Origin.GOLDEN, f"architecture: {found.name}")
        found = replace(found, inferred=(architecture, *found.inferred[1:]))
    return Settled(found, spec, chosen.task, settled)


def _combinations(reading: Reading) -> Iterator[_Combination]:
    """Every combination of a reading's values; what was assumed is the first."""
    choices = [
        [_Value(choice.subject, one.value, one.setting, one.apply) for one in choice.options]
        for choice in reading.found.choices
    ]
    for chosen in product(*choices):
        for spec, task in product(reading.specs, reading.tasks):
            yield _Combination(reading, chosen, spec, task)


def _numbers(one: Golden) -> tuple[float, ...]:
    """The numbers that it states beside its class or labels."""
    stated = (one.probability, *(one.probabilities or ()), *(one.values or ()), *(one.vector or ()))
    return tuple(number for number in stated if number is not None)


class _TooLong(Exception):
    """To try all combinations would cost more than BUDGET."""


class _Trial:
    """What combinations answer for the golden images, as far as it was looked at."""

    def __init__(self, golden: Sequence[Golden], tolerance: float) -> None:
        """left: operations that may still be spent; without a bound at first."""
        self._golden, self._tolerance = golden, tolerance
        self.left = math.inf
        self._costs: dict[tuple[Architecture, tuple[int, ...]], int] = {}
        self._engines: dict[Architecture, OpenVINOEngine] = {}
        self._images: dict[tuple[int, Spec], NDArray[np.float32] | None] = {}
        self._outputs: dict[tuple[Any, ...], Outputs | None] = {}
        self._worst: dict[_Combination, float] = {}

    @property
    def tolerances(self) -> list[float]:
        """The tolerances at which combinations are told apart, the strictest first."""
        precise = len(self._golden) >= _EVIDENCE and all(
            numbers and all(round(number, 3) != number for number in numbers if 0 < number < 1)
            for numbers in map(_numbers, self._golden)
        )
        return [PRECISE, self._tolerance] if precise and self._tolerance > PRECISE else [self._tolerance]

    def worst(self, combination: _Combination) -> float:
        """The largest difference to an image's numbers; infinity where an image gets another answer.

        Raises:
            _TooLong: see there.
        """
        if combination not in self._worst:
            combination.apply()
            worst = 0.0
            for number in range(len(self._golden)):
                worst = max(worst, self._difference(combination, number))
                if worst > self._tolerance:
                    break
            self._worst[combination] = worst
        return self._worst[combination]

    def _difference(self, combination: _Combination, number: int) -> float:
        task, golden = combination.task, self._golden[number]
        outputs = self._output(combination, number)
        if outputs is None:
            return np.inf
        if golden.kind == "class" and task.golden_kind == "labels":
            golden = golden.of_labels(outputs.shape[1])
        if golden.kind != task.golden_kind:
            return np.inf
        labels = task.labels(None, outputs.shape[1])
        ((difference, reason),) = task.check_golden(outputs, [golden], labels, self._tolerance)
        return np.inf if reason or not np.isfinite(difference) else difference

    def _output(self, combination: _Combination, number: int) -> Outputs | None:
        """What the model, changed to the combination, gives for an image; None where it cannot take it."""
        found, spec = combination.found, combination.spec
        key = (found, combination.choices, spec, number)
        if key not in self._outputs:
            image = self._image(number, spec)
            try:
                self._outputs[key] = None if image is None else self._run(found, image, spec)
            except (EngineError, RuntimeError):  # with this stride or padding, nothing is left of an image
                self._outputs[key] = None
        return self._outputs[key]

    def _run(self, found: "Architecture", image: NDArray[np.float32], spec: Spec) -> Outputs:
        if found.module is None:
            from pthserve.engines.openvino_engine import OpenVINOEngine

            if found not in self._engines:
                self._engines[found] = OpenVINOEngine(found.graph, spec)
            return self._engines[found](image)
        import torch

        self._pay(found, image.shape)
        with torch.inference_mode():
            outputs: Outputs = found.module(torch.from_numpy(image)).numpy()
        return outputs

    def _pay(self, found: "Architecture", shape: tuple[int, ...]) -> None:
        """Take what a forward pass costs from what is left, where that is bounded."""
        from pthserve.zoos.architecture import flops

        if math.isinf(self.left):
            return
        if (found, shape) not in self._costs:
            assert found.module is not None  # see `_run`
            self._costs[found, shape] = max(flops(found.module, shape), 1)
        self.left -= self._costs[found, shape]
        if self.left < 0:
            raise _TooLong

    def _image(self, number: int, spec: Spec) -> NDArray[np.float32] | None:
        """The golden image as a model takes it; None where it cannot be read, which the policy reports."""
        if (number, spec) not in self._images:
            try:
                pixels = crop(self._golden[number].read(), spec, max_pixels=OWN_MAX_PIXELS)
            except (OSError, PackError, RequestError):
                self._images[number, spec] = None
            else:
                self._images[number, spec] = normalise(pixels[None], spec)
        return self._images[number, spec]


def _only(
    groups: Sequence[list[_Combination]], trial: _Trial, ambiguous: AmbiguousArchitecture, *, enough: bool
) -> list[_Combination]:
    """The combinations of the only architecture that gives the golden images their answers.

    What is assumed of each counts first; then what else it may be.
    """
    agreeing: list[list[_Combination]] = []
    for tolerance, beyond in product(trial.tolerances, (False, True) if enough else (False,)):
        trial.left = BUDGET if beyond else math.inf
        with contextlib.suppress(_TooLong):
            agreeing = [
                group
                for group in groups
                if any(trial.worst(one) <= tolerance for one in (group if beyond else group[:1]))
            ]
        if len(agreeing) == 1:
            return agreeing[0]
    names = ", ".join(group[0].found.name for group in agreeing) or "none of them"
    raise AmbiguousArchitecture(f"{ambiguous}; the golden images agree with {names}", ambiguous.choices)


def _decide(
    combinations: Sequence[_Combination], trial: _Trial, *, enough: bool
) -> tuple[_Combination, set[str]]:
    """The combination to take, and the subjects that are thereby settled."""
    assumed, trial.left = combinations[0], BUDGET
    try:
        differences = {one: trial.worst(one) for one in combinations}
    except _TooLong:
        _log.info("the golden images settle nothing: trying all possibilities would take too long")
        return assumed, set()
    open_subjects = {
        subject
        for subject, value in assumed.values.items()
        if any(one.values[subject] != value for one in combinations)
    }
    for tolerance in trial.tolerances:
        agreeing = [one for one, worst in differences.items() if worst <= tolerance]
        if assumed in agreeing:
            # What agrees less than such precise numbers could is not shown to be right.
            exact = tolerance == trial.tolerances[0]
            return assumed, {
                subject
                for subject in open_subjects
                if exact and all(one.values[subject] == assumed.values[subject] for one in agreeing)
            }
        if len(agreeing) == 1 and enough:
            return agreeing[0], open_subjects
    return assumed, set()
