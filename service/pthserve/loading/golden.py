"""Whether a model gives its golden images their known answers, and what follows where it does not."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Engine
from pthserve.errors import GoldenError, PackError, RequestError
from pthserve.files.golden import Golden
from pthserve.images.preprocess import OWN_MAX_PIXELS, Decode, pending
from pthserve.images.spec import Spec
from pthserve.loading.model import Model
from pthserve.options import ModelOptions
from pthserve.tasks.base import Agreement, GoldenResult, Size, Task

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
    return GoldenImages(model.golden, model.spec, model.task, model.labels, tolerance, decode).check(
        model.forward
    )


@dataclass(frozen=True, slots=True)
class GoldenImages:
    """The golden images of a model, on which its engines are checked; see `check_golden`."""

    golden: Sequence[Golden]
    spec: Spec
    task: Task
    labels: tuple[str, ...]
    tolerance: float
    decode: Decode = "exact"

    def check(self, engine: Engine) -> Agreement:
        """Whether `engine` gives them their answers, as far as these are known."""
        found = [self._output(engine, one) for one in self.golden]
        outputs = [output for output in found if not isinstance(output, GoldenResult)]
        seen = [
            one
            for one, output in zip(self.golden, found, strict=True)
            if not isinstance(output, GoldenResult)
        ]
        checked = self._checked(outputs, seen)
        results = [output if isinstance(output, GoldenResult) else next(checked) for output in found]
        return Agreement(
            max((result.difference for result in results), default=0.0),
            tuple(
                f"{one.image.name}: {result.reason}"
                for one, result in zip(self.golden, results, strict=True)
                if result.reason
            ),
        )

    def _checked(
        self, outputs: Sequence[tuple[NDArray[np.float32], Size]], golden: Sequence[Golden]
    ) -> Iterator[GoldenResult]:
        """How the golden images did by their outputs; those with as many outputs as the next are checked at
        once."""
        pairs = zip(outputs, golden, strict=True)
        for _, alike in groupby(pairs, lambda pair: pair[0][0].shape):
            together = list(alike)
            rows, sizes = zip(*(output for output, _ in together), strict=True)
            images = [one for _, one in together]
            yield from self.task.check_golden(np.stack(rows), images, self.labels, self.tolerance, sizes)

    def disagreements(self, engine: Engine) -> tuple[str, ...]:
        """Those that `engine` does not give their answers, a sentence each."""
        return self.check(engine).disagreements

    def _output(self, engine: Engine, one: Golden) -> tuple[NDArray[np.float32], Size] | GoldenResult:
        """The engine's outputs for a golden image, and its size; or why there are none to be checked."""
        if one.kind != self.task.golden_kind:
            return GoldenResult(
                0.0, f"states an answer of another task ({one.kind}), but the task is {self.task.name}"
            )
        try:
            image = pending(one.read(), self.spec, decode=self.decode, max_pixels=OWN_MAX_PIXELS)
            pixels = image.pixels()
        except (OSError, PackError, RequestError) as error:
            return GoldenResult(0.0, f"cannot be read: {error}")
        return np.asarray(engine(pixels[None])[0]), image.upright
