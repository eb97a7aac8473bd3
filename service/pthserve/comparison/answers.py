"""Answers: probabilities and logits that a user's function returned, beside those of the model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pthserve.comparison.normalisation import KNOWN, Floats
from pthserve.comparison.search import CROP_RATIOS, FILTERS, Sample
from pthserve.errors import PthserveError, RequestError
from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec
from pthserve.loading.model import Model

ROUNDS = 4
"""Changes that are tried one after the other where only answers are known."""
BETTER = 0.8
"""A change counts where it leaves no more than this share of the difference."""
_SUM = 1e-3
"""By how much the sum of probabilities may differ from 1."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Our scores and the user's for the same images, each (images, scores)."""

    ours: Floats
    theirs: Floats

    @property
    def differences(self) -> Floats:
        """The largest difference for each image."""
        largest: Floats = np.abs(self.ours - self.theirs).max(1)
        return largest

    @property
    def difference(self) -> float:
        """The largest difference for any image."""
        return float(self.differences.max())

    @property
    def worst(self) -> int:
        """The image with the largest difference."""
        return int(self.differences.argmax())

    @property
    def other_classes(self) -> int:
        """For how many images the best score is of another class."""
        return int((self.ours.argmax(1) != self.theirs.argmax(1)).sum())


def outputs(model: Model, tensors: Sequence[Floats]) -> Floats:
    """What the model gives for tensors that are preprocessed, image by image: (images, outputs)."""
    return np.concatenate([model.forward(np.ascontiguousarray(tensor[None])) for tensor in tensors])


def tensors_of(samples: Sequence[Sample], spec: Spec) -> list[Floats]:
    """The samples as `spec` preprocesses them."""
    return [normalise(one.pixels(spec)[None], spec)[0] for one in samples]


def answers(model: Model, ours: Floats, theirs: Sequence[Floats]) -> Answers:
    """Scores of the model's outputs, and of the user's values: logits or scores already.

    Raises:
        PthserveError: the user's function does not return as many values as the model has outputs.
    """
    values = np.stack(theirs)
    scores = model.task.scores(ours)
    if values.shape != scores.shape:
        raise PthserveError(
            f"your function returns {values.shape[1]} probabilities or logits, and the model gives "
            f"{scores.shape[1]}; is it another model?"
        )
    return Answers(scores, values if are_scores(model, values) else model.task.scores(values))


def are_scores(model: Model, values: Floats) -> bool:
    """Whether `values` are probabilities, and not logits."""
    inside = bool(((values >= -_SUM) & (values <= 1 + _SUM)).all())
    sums_to_1 = bool((np.abs(values.sum(1) - 1) <= _SUM).all())
    return inside and (sums_to_1 or model.task.name != "classification")


def are_sigmoids(ours: Floats, values: Floats, tolerance: float) -> bool:
    """Whether the user's `values` are the sigmoids of the outputs `ours`."""
    sigmoids = 1 / (1 + np.exp(-ours.astype(np.float64)))
    return values.shape == ours.shape and bool(np.abs(sigmoids - values).max() <= tolerance)


def nearest_by_answers(
    model: Model, samples: Sequence[Sample], theirs: Sequence[Floats], tolerance: float
) -> Spec:
    """The preprocessing whose answers come nearest to the user's.

    One change after the other is made, each time the best of a finite list, until none helps.
    """

    def difference(spec: Spec) -> float:
        try:
            tensors = tensors_of(samples, spec)
        except RequestError:  # a resize that makes an image too large
            return np.inf
        return answers(model, outputs(model, tensors), theirs).difference

    best, left = model.spec, difference(model.spec)
    oriented = any(one.oriented for one in samples)
    for _ in range(ROUNDS):
        if left <= tolerance:
            break
        found, spec = min(_tried(_changes(best, oriented), difference), key=lambda one: one[0])
        if found > BETTER * left:
            break
        best, left = spec, found
    return best


def _tried(specs: Iterator[Spec], difference: Callable[[Spec], float]) -> Iterator[tuple[float, Spec]]:
    return ((difference(spec), spec) for spec in specs)


def _changes(spec: Spec, oriented: bool) -> Iterator[Spec]:
    """`spec` with one change each."""
    height, width = spec.crop
    shorter = min(height, width)
    if spec.channels == 3:
        yield replace(spec, channel_order="rgb" if spec.channel_order == "bgr" else "bgr")
    if oriented:
        yield replace(spec, exif=not spec.exif)
    for interpolation, antialias in FILTERS:
        if (interpolation, antialias) != (spec.interpolation, spec.antialias):
            yield replace(spec, interpolation=interpolation, antialias=antialias)
    sizes = [shorter, 256, 232, *(round(shorter / ratio) for ratio in CROP_RATIOS)]
    for resize in dict.fromkeys([(height, width), *(size for size in sizes if size >= shorter), None]):
        if resize != spec.resize:
            yield replace(spec, resize=resize)
    for mean, std in KNOWN:
        if len(mean) == spec.channels or len(mean) == len(std) == 1:
            means, stds = (values if len(values) > 1 else values * spec.channels for values in (mean, std))
            for order in (1, -1) if len(set(means)) > 1 else (1,):
                yield replace(spec, mean=means[::order], std=stds[::order])
