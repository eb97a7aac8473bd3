"""Shadow: run a new model on live images beside the current one, and measure how often they agree."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Logits
from pthserve.loading.model import Model
from pthserve.metrics import SHADOW_IMAGES
from pthserve.serving.background import in_background
from pthserve.serving.prediction import Input, Prediction
from pthserve.serving.predictor import Predictor
from pthserve.tasks.base import Drawn

IMAGES = 100
"""Number of images to compare: enough to distinguish a model that agrees on 9 in 10 from one that agrees on
all."""
SECONDS = 60.0
"""Maximum time in seconds to wait for traffic."""
WAITING = 4
"""Maximum number of images that wait for the new model; further images are skipped."""


class Shadow:
    """Runs `model` on a `share`, 0 to 1, of the images that `predictor` answers with the current model.

    Attributes:
        images: Number of images that both models have answered.
        agreed: Number of those with the same answer; see `Task.same`.
    """

    def __init__(self, predictor: Predictor, model: Model, share: float) -> None:
        self._predictor = predictor
        self._model = model
        self._share = share
        self._waiting: asyncio.Queue[tuple[Input, Any]] = asyncio.Queue(WAITING)
        self.images = 0
        self.agreed = 0

    @property
    def agreement(self) -> float | None:
        """Share of images with the same answer, 0 to 1; None if there was no traffic."""
        return self.agreed / self.images if self.images else None

    async def run(self) -> None:
        """Compare until IMAGES have been compared or SECONDS have passed. No live answer waits for it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + SECONDS
        with self._predictor.observers.during(self._offer), suppress(TimeoutError):
            while self.images < IMAGES:
                async with asyncio.timeout_at(end):
                    image, answer = await self._waiting.get()
                # Outside the time limit: a thread cannot be interrupted, and must end before the replacement.
                agrees = await self._agrees(image, answer)
                self.images += 1
                self.agreed += agrees
                SHADOW_IMAGES.labels("agreed" if agrees else "disagreed").inc()

    def _offer(self, images: Sequence[Input], predictions: Sequence[Prediction] | None) -> None:
        if predictions is None:
            return
        for image, prediction in zip(images, predictions, strict=True):
            if random.random() < self._share:  # noqa: S311
                with suppress(asyncio.QueueFull):
                    self._waiting.put_nowait((image, prediction.answer))

    async def _agrees(self, image: Input, answer: Any) -> bool:
        """Return whether the new model gives the same answer; False if it fails."""
        try:
            pixels = await self._predictor.decoded(image, self._model.spec, SECONDS)
            outputs = (await in_background(partial(self._logits, pixels)))[0]
            size = answer.size if isinstance(answer, Drawn) else (1, 1)
            return self._model.task.same(self._model.answer(outputs, size), answer)
        except Exception:
            return False

    def _logits(self, pixels: NDArray[Any]) -> Logits:
        return np.asarray(self._model.forward(pixels[None]), np.float32)
