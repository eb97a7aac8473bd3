"""Settle: golden images decide what the file leaves open, where only one possibility gives their answers.

Every combination of what is open is tried on the module itself, in float32. A combination is dropped at the
first image that it gives another answer, so that most cost one forward pass.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from pthserve.certainty import Inferred, Origin
from pthserve.errors import PackError, RequestError
from pthserve.files.golden import Golden
from pthserve.images.preprocess import OWN_MAX_PIXELS, crop, normalise
from pthserve.images.spec import Spec
from pthserve.tasks.classification import softmax

if TYPE_CHECKING:  # they import torch
    from torch import Tensor

    from pthserve.zoos.base import Architecture

BUDGET = 2e12
"""Floating-point operations that it may cost: seconds on a processor, and the same result on each."""
IMAGES = 16
"""Most golden images that are looked at."""
PRECISE = 1e-3
"""Where probabilities have four decimals or more, the right combination is within this; others may be within
the tolerance too."""
_EVIDENCE = 2
"""Golden images with probabilities that it takes to prefer something else to what was assumed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Value:
    """One value of what is open: see `Inferred`, and how the module or the spec gets it."""

    subject: str
    value: str
    setting: str
    apply: Callable[[], None] | None = None
    spec: Spec | None = None


def settle(
    found: "Architecture", specs: Sequence[Spec], golden: Sequence[Golden], tolerance: float
) -> tuple[Spec, Mapping[str, Inferred]]:
    """The spec of `found`, and by subject what the golden images settle; the module is changed to that.

    Args:
        found: a graph without a module is left as it is.
        specs: how images may be preprocessed; the first was assumed, or is stated where it is alone.
        golden: those without a probability are not looked at, nor those whose answers are the model's own.
        tolerance: by how much a probability may differ.
    """
    known = [one for one in golden if one.probability is not None and not one.recorded][:IMAGES]
    subjects = [
        [
            _Value("preprocessing", spec.words(), f"preprocessing: {spec.to_card()}", spec=spec)
            for spec in specs
        ],
        *(
            [_Value(choice.subject, one.value, one.setting, apply=one.apply) for one in choice.options]
            for choice in found.choices
        ),
    ]
    if not known or found.module is None or all(len(values) == 1 for values in subjects):
        return specs[0], {}
    assumed = tuple(values[0] for values in subjects)
    differences = _differences(found, subjects, known, tolerance)
    chosen, decided = _decide(assumed, differences, _tolerances(known, tolerance), len(known))
    _apply(chosen)
    settled = {
        one.subject: Inferred(one.subject, one.value, Origin.GOLDEN, one.setting)
        for one, values in zip(chosen, subjects, strict=True)
        if one.subject in decided and len(values) > 1
    }
    for one, before in zip(chosen, assumed, strict=True):
        if one is not before:
            _log.warning("%s: %s, as only this gives the golden images their answers", one.subject, one.value)
    spec = chosen[0].spec
    assert spec is not None  # the first subject is the preprocessing
    return replace(spec, assumed=spec.assumed and "preprocessing" not in settled), settled


_Combination = tuple[_Value, ...]


def _apply(combination: _Combination) -> None:
    for one in combination:
        if one.apply:
            one.apply()


def _differences(
    found: "Architecture", subjects: Sequence[Sequence[_Value]], golden: Sequence[Golden], tolerance: float
) -> Mapping[_Combination, float]:
    """Each combination that gives all answers, and the largest difference of a probability.

    Empty where it would cost too much to try them all.
    """
    import torch

    from pthserve.zoos.architecture import flops

    combinations = list(product(*subjects))
    shape = (1, *(combinations[0][0].spec or Spec()).tensor_shape)
    assert found.module is not None
    left = int(BUDGET / max(flops(found.module, shape), 1))
    agreeing: dict[_Combination, float] = {}
    images = _images(golden)
    for combination in combinations:
        _apply(combination)
        worst = 0.0
        for one, image in zip(golden, images(combination[0].spec or Spec()), strict=True):
            if not left:
                _log.info("the golden images settle nothing: trying all possibilities would take too long")
                return {}
            left -= 1
            with torch.inference_mode():
                worst = max(worst, _difference(found, image, one))
            if worst > tolerance:
                break
        else:
            agreeing[combination] = worst
    return agreeing


def _images(golden: Sequence[Golden]) -> Callable[[Spec], Iterator["Tensor | None"]]:
    """The golden images as a module takes them, by spec; None where one cannot be read."""
    import torch

    made: dict[tuple[int, Spec], Tensor | None] = {}

    def preprocessed(spec: Spec) -> Iterator["Tensor | None"]:
        for number, one in enumerate(golden):
            if (number, spec) not in made:
                try:
                    pixels = crop(one.read(), spec, max_pixels=OWN_MAX_PIXELS)
                except (OSError, PackError, RequestError):  # the golden policy reports it
                    made[number, spec] = None
                else:
                    made[number, spec] = torch.from_numpy(normalise(pixels[None], spec))
            yield made[number, spec]

    return preprocessed


def _difference(found: "Architecture", image: "Tensor | None", one: Golden) -> float:
    """By how much the probability of the golden image's class differs; infinity where another is top."""
    if image is None or one.probability is None or one.class_index is None:
        return np.inf
    try:
        assert found.module is not None
        probabilities = softmax(found.module(image).numpy())[0]
    except RuntimeError:  # with this stride or padding, nothing is left of an image
        return np.inf
    if one.class_index >= len(probabilities) or probabilities.argmax() != one.class_index:
        return np.inf
    difference = abs(float(probabilities[one.class_index]) - one.probability)
    return difference if np.isfinite(difference) else np.inf


def _tolerances(golden: Sequence[Golden], tolerance: float) -> list[float]:
    """The tolerances at which combinations are told apart, the strictest first."""
    precise = len(golden) >= _EVIDENCE and all(
        one.probability is not None and round(one.probability, 3) != one.probability for one in golden
    )
    return [PRECISE, tolerance] if precise and tolerance > PRECISE else [tolerance]


def _decide(
    assumed: _Combination,
    differences: Mapping[_Combination, float],
    tolerances: Sequence[float],
    images: int,
) -> tuple[_Combination, set[str]]:
    """The combination to take, and the subjects that are thereby settled."""
    for tolerance in tolerances:
        agreeing = [combination for combination, worst in differences.items() if worst <= tolerance]
        if assumed in agreeing:
            same = {
                one.subject for number, one in enumerate(assumed) if {c[number] for c in agreeing} == {one}
            }
            return assumed, same
        if len(agreeing) == 1 and images >= _EVIDENCE:
            return agreeing[0], {one.subject for one in agreeing[0]}
    return assumed, set()
