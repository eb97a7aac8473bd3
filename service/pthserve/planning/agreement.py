"""Prove: do two models agree on images? The guard of tune, of golden images and of reload."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Images, Logits
from pthserve.errors import PackError, RequestError
from pthserve.images.preprocess import Decode, Pixels, crop
from pthserve.images.spec import Spec
from pthserve.loading.model import Golden, Model

Probabilities = NDArray[np.float32]
"""float32 (n, classes); each row sums to 1."""

CLEAR_MARGIN = 0.05
"""Where the reference's best probability is so far ahead of its second, the top class must be the same. An
answer within the default tolerance of 0.02 cannot swap classes that are more than 0.04 apart."""

_MAX_PIXELS = 2**30


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether answers agree with what they are compared with.

    difference: the largest |dp| that was seen, 0 to 1; infinity where an answer is not a number.
    disagreements: one in words for each image that disagrees; empty where all agree.
    """

    difference: float
    disagreements: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether no image disagrees."""
        return not self.disagreements


def softmax(logits: Logits) -> Probabilities:
    """Probabilities of `logits`, float32 (..., classes), along the last axis; only infinity is too large."""
    with np.errstate(over="ignore", invalid="ignore"):
        exponents = logits - np.maximum.reduce(logits, -1, keepdims=True)
        np.exp(exponents, out=exponents)
        exponents /= np.add.reduce(exponents, -1, keepdims=True)
    return exponents


def compare(answers: Probabilities, reference: Probabilities, tolerance: float) -> Proof:
    """Whether `answers` agree with `reference`, row by row.

    They do where the top class is the same, unless the reference's margin is under CLEAR_MARGIN, and no
    probability is further from the reference's than `tolerance`.
    """
    if answers.shape != reference.shape:
        return Proof(np.inf, (f"{answers.shape[-1]} classes, and not {reference.shape[-1]}",))
    differences = np.abs(answers - reference).max(-1)
    found = [
        _disagreement(answer, expected, float(difference), tolerance)
        for answer, expected, difference in zip(answers, reference, differences, strict=True)
    ]
    return Proof(
        float(np.nan_to_num(differences, nan=np.inf).max(initial=0)),
        tuple(f"image {number}: {words}" for number, words in enumerate(found) if words),
    )


def _disagreement(answer: Probabilities, expected: Probabilities, difference: float, tolerance: float) -> str:
    if not np.isfinite(difference):
        return "its probabilities are not numbers"
    top, second = np.sort(expected)[::-1][:2] if len(expected) > 1 else (1.0, 0.0)
    if answer.argmax() != expected.argmax() and top - second > CLEAR_MARGIN:
        return f"class {answer.argmax()}, and not {expected.argmax()}"
    if difference > tolerance:
        return f"a probability is {difference:.3f} off, more than {tolerance}"
    return ""


def prove(
    forward: Callable[[Images], Logits], images: Images, reference: Probabilities, tolerance: float
) -> Proof:
    """Whether `forward`, an engine, agrees with `reference` on `images`; it is given one at a time."""
    answers = np.concatenate([softmax(forward(images[number : number + 1])) for number in range(len(images))])
    return compare(answers, reference, tolerance)


def golden(model: Model, tolerance: float, decode: Decode = "exact") -> Proof:
    """Whether `model` gives its golden images their classes, with the probabilities that are known."""
    proofs = [_golden(model, one, tolerance, decode) for one in model.golden]
    return Proof(
        max((proof.difference for proof in proofs), default=0.0),
        tuple(words for proof in proofs for words in proof.disagreements),
    )


def _golden(model: Model, one: Golden, tolerance: float, decode: Decode) -> Proof:
    def disagreement(words: str, difference: float = 0.0) -> Proof:
        return Proof(difference, (f"{one.image.name}: {words}",))

    try:
        image = crop(one.read(), model.spec, decode=decode, max_pixels=_MAX_PIXELS)
    except (OSError, PackError, RequestError) as error:
        return disagreement(f"cannot be read: {error}")
    probabilities = softmax(model.forward(image[None]))[0]
    if not np.isfinite(probabilities).all():
        return disagreement("its probabilities are not numbers", np.inf)
    if one.class_index >= len(probabilities):
        return disagreement(f"there is no class {one.class_index} among {len(probabilities)}")
    probability, top = float(probabilities[one.class_index]), int(probabilities.argmax())
    difference = 0.0 if one.probability is None else abs(probability - one.probability)
    if top != one.class_index:
        got, wanted = (f"{index} ({model.labels[index]})" for index in (top, one.class_index))
        return disagreement(f"class {got}, and not {wanted}", difference)
    if difference > tolerance:
        return disagreement(
            f"probability {probability:.3f}, and not {one.probability} ± {tolerance}", difference
        )
    return Proof(difference, ())


def samples() -> Sequence[bytes]:
    """The sample images that ship, as JPEG files."""
    folder = resources.files("pthserve.images") / "samples"
    return [
        file.read_bytes()
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".jpg")
    ]


def sample_images(spec: Spec) -> Pixels:
    """The sample images as a model sees them: uint8 (n, height, width, channels)."""
    return np.stack([crop(data, spec, max_pixels=_MAX_PIXELS) for data in samples()])
