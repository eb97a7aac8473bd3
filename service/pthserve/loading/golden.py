"""Whether a model gives its golden images their known answers, and what follows where it does not."""

import logging

import numpy as np
from numpy.typing import NDArray

from pthserve.errors import GoldenError, PackError, RequestError
from pthserve.files.golden import Golden
from pthserve.images.preprocess import OWN_MAX_PIXELS, Decode, pending
from pthserve.loading.model import Model
from pthserve.options import ModelOptions
from pthserve.tasks.base import Agreement, GoldenResult, Size

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
    """Whether `model` gives its golden images their answers, as far as these are known."""
    found = [_output(model, one, decode) for one in model.golden]
    outputs = [output for output in found if not isinstance(output, GoldenResult)]
    seen = [
        one for one, output in zip(model.golden, found, strict=True) if not isinstance(output, GoldenResult)
    ]
    rows, sizes = zip(*outputs, strict=True) if outputs else ((), ())
    checked = iter(
        model.task.check_golden(np.stack(rows), seen, model.labels, tolerance, sizes) if seen else ()
    )
    results = [output if isinstance(output, GoldenResult) else next(checked) for output in found]
    return Agreement(
        max((result.difference for result in results), default=0.0),
        tuple(
            f"{one.image.name}: {result.reason}"
            for one, result in zip(model.golden, results, strict=True)
            if result.reason
        ),
    )


def _output(model: Model, one: Golden, decode: Decode) -> tuple[NDArray[np.float32], Size] | GoldenResult:
    """The model's outputs for a golden image, and its size; or why there are none that could be checked."""
    if one.kind != model.task.golden_kind:
        return GoldenResult(
            0.0, f"states an answer of another task ({one.kind}), but the task is {model.task.name}"
        )
    try:
        image = pending(one.read(), model.spec, decode=decode, max_pixels=OWN_MAX_PIXELS)
        pixels = image.pixels()
    except (OSError, PackError, RequestError) as error:
        return GoldenResult(0.0, f"cannot be read: {error}")
    return np.asarray(model.forward(pixels[None])[0]), image.upright
