"""Whether a model gives its golden images their known answers, and what follows where it does not."""

import logging

import numpy as np

from pthserve.errors import GoldenError, PackError, RequestError
from pthserve.files.golden import Golden
from pthserve.images.preprocess import OWN_MAX_PIXELS, Decode, crop
from pthserve.loading.model import Model
from pthserve.options import ModelOptions
from pthserve.tasks.base import Agreement
from pthserve.tasks.classification import softmax

_log = logging.getLogger(__name__)


def apply_golden_policy(model: Model, settings: ModelOptions) -> str:
    """How `model` does on its golden images: agreed, disagreed or unchecked.

    `settings.golden` is the policy: `gate` refuses a model that disagrees, `warn` logs it, `off` checks
    nothing.
    Raises GoldenError where the policy refuses the model.
    """
    if settings.golden == "off" or not model.golden:
        return "unchecked"
    proof = check_golden(model, settings.tolerance, settings.decode)
    if proof.agrees:
        return "agreed"
    message = f"the golden images disagree: {'; '.join(proof.disagreements)}"
    if settings.golden == "gate":
        raise GoldenError(message)
    _log.warning("%s", message)
    return "disagreed"


def check_golden(model: Model, tolerance: float, decode: Decode = "exact") -> Agreement:
    """Whether `model` gives its golden images their classes, with the probabilities that are known."""
    proofs = [_check_one(model, one, tolerance, decode) for one in model.golden]
    return Agreement(
        max((proof.difference for proof in proofs), default=0.0),
        tuple(words for proof in proofs for words in proof.disagreements),
    )


def _check_one(model: Model, one: Golden, tolerance: float, decode: Decode) -> Agreement:
    def disagreement(words: str, difference: float = 0.0) -> Agreement:
        return Agreement(difference, (f"{one.image.name}: {words}",))

    try:
        image = crop(one.read(), model.spec, decode=decode, max_pixels=OWN_MAX_PIXELS)
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
    return Agreement(difference, ())
