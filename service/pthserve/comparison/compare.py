"""Compare: the stages from an image file to an answer, of a user's function beside those of pthserve."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pthserve.comparison.answers import (
    Answers,
    answers,
    are_scores,
    are_sigmoids,
    nearest_by_answers,
    outputs,
    tensors_of,
)
from pthserve.comparison.normalisation import Floats
from pthserve.comparison.search import SEARCHED, Sample, nearest, sample
from pthserve.comparison.user_function import Returned, UserFunction
from pthserve.errors import PthserveError
from pthserve.files.card_fields import preprocessing_fields
from pthserve.images.spec import Spec
from pthserve.loading.model import Model
from pthserve.text import quoted

LEVELS = 0.5
"""Grey levels, of 255, that tensors may differ by on average. Resizing a tensor of fractions instead of an
image of whole numbers makes 0.3."""
TOLERANCE = 0.001
"""By how much a probability may differ."""

STAGES = {
    "decode": ("exif", "channel_order"),
    "resize": ("resize", "interpolation", "antialias"),
    "crop": ("crop",),
    "normalise": ("mean", "std"),
}
"""The stages that a card states, and by which of its fields."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of both.

    ours, theirs: in words; "" where there is nothing to say. difference: grey levels of 255 on average, or
    for `forward` of a probability at most; None where it cannot be measured. differs: None where it is known
    only that something differs.
    """

    name: str
    differs: bool | None
    ours: str = ""
    theirs: str = ""
    difference: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is the same and what differs.

    levels: grey levels of 255 that the tensors differ by on average, before anything is changed; left: after
    the changes; None where there are no tensors. card: the fields of `preprocessing` that mend it; empty
    where nothing is to be changed, or no change helps. notes: sentences for the user.
    """

    stages: tuple[Stage, ...]
    images: int
    levels: float | None = None
    left: float | None = None
    card: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def first_difference(self) -> str | None:
        """The name of the first stage that differs."""
        return next((stage.name for stage in self.stages if stage.differs), None)

    @property
    def agrees(self) -> bool:
        """Whether no stage differs."""
        return all(stage.differs is False for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain values, ready for JSON."""
        return {"agrees": self.agrees, "first_difference": self.first_difference, **asdict(self)}


def compare(
    model: Model,
    function: UserFunction,
    images: Sequence[Path],
    *,
    levels: float = LEVELS,
    tolerance: float = TOLERANCE,
) -> Comparison:
    """What the user's function makes of the image files, beside what the model makes of them.

    Raises:
        PthserveError: the function fails or returns something that cannot be compared, or an image cannot be
            read.
    """
    spec = model.spec
    samples = [sample(path, spec) for path in images]
    returned = [function(path) for path in images]
    function.check_repeatable(images[0], returned[0])
    tensors, scores = _columns(returned, function.name, images)
    notes = list(_untested(samples, spec))
    if tensors is None:
        assert scores is not None
        return _by_answers(model, samples, scores, tolerance, notes)
    _check(tensors, spec, function.name, images)
    same_size = tensors[0].shape == spec.tensor_shape
    before = _levels(tensors_of(samples, spec), tensors, spec) if same_size else None
    if before is not None and before <= levels:
        stages = [Stage(name, False, _words(spec, name), "the same") for name in STAGES]
        after = card = None
    else:
        stages, after, card = _stages(samples, tensors, spec, levels, notes)
    if same_size:
        given = outputs(model, tensors)
        notes += _effect(model, samples, given, tolerance)
        if scores is not None:
            stages.append(_forward(model, given, scores, tolerance))
            if stages[-1].differs:
                notes += _reasons(model, given, scores, tolerance)
    else:
        notes.append("The forward pass was not compared: the tensors have another size than the model's.")
    return Comparison(tuple(stages), len(images), before, after, card, tuple(notes))


def _columns(
    returned: Sequence[Returned], name: str, images: Sequence[Path]
) -> tuple[list[Floats] | None, list[Floats] | None]:
    """All tensors and all scores; None for what the function does not return."""
    columns: list[list[Floats] | None] = []
    for values in ([one.tensor for one in returned], [one.scores for one in returned]):
        there = [value for value in values if value is not None]
        if there and len(there) < len(values):
            raise PthserveError(
                f"{name} returns a tensor or probabilities for some images and not for others"
            )
        for image, value in zip(images, there, strict=False):
            if value.shape != there[0].shape:
                raise PthserveError(
                    f"{name} returns shape {there[0].shape} for {images[0]} and {value.shape} for {image}; a "
                    "model gets images of one size"
                )
        columns.append(there or None)
    return columns[0], columns[1]


def _check(tensors: Sequence[Floats], spec: Spec, name: str, images: Sequence[Path]) -> None:
    channels = len(tensors[0])
    if channels != spec.channels:
        raise PthserveError(
            f"{name} returns a tensor of {channels} channels for {images[0]}, and the model gets "
            f"{spec.channels}"
        )


def _untested(samples: Sequence[Sample], spec: Spec) -> Iterator[str]:
    if all(one.plain.width == one.plain.height for one in samples):
        yield (
            "All images are square, so that resizing the shorter side and resizing both sides are the same; "
            "compare an image that is not square too."
        )
    if not any(one.oriented for one in samples):
        yield "No image has an EXIF orientation, so `exif` was not compared."
    if spec.channels == 3 and all(one.plain.convert("L").convert("RGB") == one.plain for one in samples):
        yield "No image has colours, so the order of the channels was not compared."


def _levels(ours: Sequence[Floats], theirs: Sequence[Floats], spec: Spec) -> float:
    """Mean difference of tensors, in grey levels of 255."""
    scale = 255 * np.asarray(spec.std)[:, None, None]
    differences = (np.abs(one - other) * scale for one, other in zip(ours, theirs, strict=True))
    return float(np.mean([difference.mean() for difference in differences]))


def _stages(
    samples: Sequence[Sample], tensors: Sequence[Floats], spec: Spec, levels: float, notes: list[str]
) -> tuple[list[Stage], float | None, dict[str, Any] | None]:
    """The stages that a card states, what is left when they are changed, and the card's fields."""
    found = nearest(samples, tensors, spec)
    if found.obstacle:
        notes.append(f"Your function {found.obstacle}. A model card cannot state that.")
        normalises = "normalises" in found.obstacle or "inverts" in found.obstacle
        if not normalises:
            return [Stage(name, None, _words(spec, name)) for name in STAGES], None, None
        stages = _differing(samples, spec, found.spec)
        stages[-1] = Stage("normalise", True, _words(spec, "normalise"), found.obstacle)
        return stages, None, None
    left = _levels(tensors_of(samples, found.spec), tensors, found.spec)
    if left > levels:
        notes.append(
            f"No variation of decoding, resizing, cropping and normalising agrees; the nearest, "
            f"{found.spec.words()}, still differs by {left:.1f} of 255 grey levels."
        )
        stages = [Stage(name, None, _words(spec, name)) for name in STAGES]
        return stages, left, None
    return _differing(samples, spec, found.spec), left, preprocessing_fields(found.spec)


def _differing(samples: Sequence[Sample], spec: Spec, other: Spec) -> list[Stage]:
    """The stages by which two specs differ, and what each of them changes, one after the other."""
    steps = [spec]
    for fields in STAGES.values():
        steps.append(replace(steps[-1], **{name: getattr(other, name) for name in fields}))
    stages = []
    for name, (before, after) in zip(STAGES, pairwise(steps), strict=True):
        if before == after:
            stages.append(Stage(name, False, _words(spec, name), "the same", 0.0))
            continue
        same_size = before.crop == after.crop
        difference = (
            _levels(tensors_of(samples, before), tensors_of(samples, after), before) if same_size else None
        )
        stages.append(Stage(name, True, _words(before, name), _words(after, name), difference))
    return stages


def _effect(model: Model, samples: Sequence[Sample], given: Floats, tolerance: float) -> Iterator[str]:
    """What the user's tensors, of which the outputs are `given`, change in the model's scores."""
    ours = model.task.scores(outputs(model, tensors_of(samples, model.spec)))
    effect = Answers(ours, model.task.scores(given))
    if effect.difference > tolerance:
        yield (
            f"With your tensors the model's scores change by up to {effect.difference:.3f}, and the best "
            f"class changes for {effect.other_classes} of {len(samples)} images."
        )


def _forward(model: Model, given: Floats, scores: Sequence[Floats], tolerance: float) -> Stage:
    """The scores of the outputs `given` beside the user's."""
    both = answers(model, given, scores)
    ours, theirs = (_best(model, values[both.worst]) for values in (both.ours, both.theirs))
    return Stage("forward", both.difference > tolerance, ours, theirs, both.difference)


def _reasons(model: Model, given: Floats, scores: Sequence[Floats], tolerance: float) -> Iterator[str]:
    """What may be wrong where the forward pass of the same tensors differs."""
    if reason := _known_reason(model, given, scores, tolerance):
        yield reason
        return
    yield (
        "The same tensors give other results: the weights are of another training step, or the architecture "
        "is not the one of your script."
    )
    for value in model.inferred:
        if value.uncertain and value.subject not in ("preprocessing", "labels"):
            yield f"It was not stated: {value}."


def _known_reason(model: Model, given: Floats, scores: Sequence[Floats], tolerance: float) -> str:
    values = np.stack(scores)
    if model.task.name == "classification" and are_sigmoids(given, values, tolerance):
        return (
            "Your function applies a sigmoid to each output, and the model a softmax over all: state "
            "`task: multilabel` in model.yaml."
        )
    ours = model.task.scores(given)
    theirs = values if are_scores(model, values) else model.task.scores(values)
    if np.abs(np.sort(theirs, axis=1) - np.sort(ours, axis=1)).max() <= tolerance:
        return "The scores are the same in another order: your function numbers the classes otherwise."
    return ""


def _best(model: Model, scores: Floats) -> str:
    best = int(scores.argmax())
    label = quoted(model.labels[best]) if len(model.labels) == len(scores) else f"output {best}"
    return f"{label}: {scores[best]:.4f}"


def _by_answers(
    model: Model, samples: Sequence[Sample], scores: Sequence[Floats], tolerance: float, notes: list[str]
) -> Comparison:
    """The comparison where the function returns no tensors."""
    spec = model.spec
    given = outputs(model, tensors_of(samples, spec))
    forward = _forward(model, given, scores, tolerance)
    stages = [Stage(name, False, _words(spec, name), "not returned") for name in STAGES]
    reason = _known_reason(model, given, scores, tolerance) if forward.differs else ""
    if reason or not forward.differs:
        return Comparison((*stages, forward), len(samples), notes=(*notes, *filter(None, [reason])))
    few = slice(0, SEARCHED)
    best = nearest_by_answers(model, samples[few], scores[few], tolerance)
    after = answers(model, outputs(model, tensors_of(samples, best)), scores).difference
    if after <= tolerance:
        forward = replace(forward, differs=False, theirs="the same, once the lines are stated")
        stages = _differing(samples, spec, best)
        return Comparison(
            (*stages, forward), len(samples), card=preprocessing_fields(best), notes=tuple(notes)
        )
    notes.append(
        "No variation of the preprocessing gives your function's results; the nearest, "
        f"{best.words()}, leaves a difference of {after:.3f}. Return the tensor too, so that each stage can "
        "be compared."
    )
    stages = [replace(stage, differs=None) for stage in stages]
    return Comparison((*stages, forward), len(samples), notes=tuple(notes))


_WORDS: dict[str, Callable[[Spec], str]] = {
    "decode": lambda spec: spec.channel_order.upper() + (", upright as in EXIF" if spec.exif else ""),
    "resize": lambda spec: (
        f"{_size(spec.resize)}, {spec.interpolation}" + ("" if spec.antialias else " without antialiasing")
    ),
    "crop": lambda spec: _size(spec.crop),
    "normalise": lambda spec: f"mean {_numbers(spec.mean)}, std {_numbers(spec.std)}",
}


def _words(spec: Spec, stage: str) -> str:
    if stage == "decode" and spec.channels == 1:
        return "grey" + (", upright as in EXIF" if spec.exif else "")
    return _WORDS[stage](spec)


def _size(size: int | tuple[int, int] | None) -> str:
    if size is None:
        return "not resized"
    return f"shorter side to {size}" if isinstance(size, int) else f"{size[0]} x {size[1]}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
