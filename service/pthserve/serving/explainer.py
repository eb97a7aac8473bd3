"""Explainer: heat maps for single images, made without delaying other requests much."""

import asyncio
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import numpy as np

from pthserve.engines.base import Explanation, Logits
from pthserve.engines.heat_map import heat_map
from pthserve.errors import DeadlineExceeded, MalformedRequest, Overloaded
from pthserve.images.preprocess import Pixels
from pthserve.loading.model import Model
from pthserve.metrics import Rejection, count_rejection
from pthserve.serving.background import run
from pthserve.serving.batcher import Entry, Inference
from pthserve.serving.estimators import Smoothed
from pthserve.serving.predictor import Predictor

PERMITS = 2
"""Maximum number of heat maps that are made at the same time."""

_TOO_LATE = "the deadline passed before the heat map was ready"


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """The explanation for one image.

    Attributes:
        image: The preprocessed image, uint8 (height, width, channels).
        class_index: The class that is explained.
        explanation: The heat map, with values from 0 to 1, and the method.
    """

    model: Model
    image: Pixels
    class_index: int
    explanation: Explanation


class Explainer:
    """Explains the answers of the current model of `predictor`. Only one event loop may use it.

    It has its own threads and its own permits. Its forward passes go through the queue of the engine, a few
    images at a time, together with those of other requests.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._making = 0
        self._seconds = Smoothed()

    def check(self, class_index: int | None) -> Model:
        """Check whether a request can be answered now, and return the model.

        Args:
            class_index: The class to explain; None for the most probable one.

        Raises:
            MalformedRequest: The model has no classes, or not this one.
            Overloaded: The limit of heat maps is reached.
            Draining, NotReady: No model is served now.
        """
        model = self._predictor.model()
        if not model.task.explains:
            raise MalformedRequest(
                f"a heat map explains a class, but a model for {model.task.name} has no classes"
            )
        if class_index is not None and class_index >= model.num_classes:
            raise MalformedRequest(
                f"class {class_index} does not exist; the model has classes 0 to {model.num_classes - 1}"
            )
        if self._making >= PERMITS:
            count_rejection(Rejection.EXPLAIN)
            raise Overloaded(
                f"the limit of {PERMITS} heat maps at the same time is reached; try again later",
                retry_after=self._seconds.value,
            )
        return model

    async def explain(self, data: bytes, class_index: int | None, *, deadline: float) -> Explained:
        """Return how much each part of an image speaks for a class.

        Args:
            data: The image file.
            class_index: The class; None for the most probable one.
            deadline: Seconds until the request's deadline.

        Raises:
            RequestError: The image or the class is invalid.
            Unavailable: A limit is reached, or no model is served now.
            DeadlineExceeded: The deadline passed first.
            EngineFailed: A forward pass failed.
        """
        model = self.check(class_index)
        loop = asyncio.get_running_loop()
        began, until = time.perf_counter(), loop.time() + deadline
        self._making += 1
        try:
            image = cast("Pixels", await self._predictor.decoded(data, model.spec, deadline))
            del data
            work = _Work(model, image, class_index, self._predictor, loop, until)
            made: Future[Explained] = Future()
            made.set_running_or_notify_cancel()  # a client that leaves does not end the thread
            # A daemon thread: a slow heat map must not keep the process from ending.
            thread = threading.Thread(target=run, args=(work.run, made), name="explain", daemon=True)
            thread.start()
        except BaseException:
            self._ended()
            raise
        made.add_done_callback(lambda _: self._end(loop))
        try:
            explained = await asyncio.wrap_future(made)
        except asyncio.CancelledError:
            work.wanted = False
            raise
        finally:
            del made  # its exception refers to this frame, and must not form a reference cycle
        self._seconds.observe(time.perf_counter() - began)
        return explained

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop is closed: there are no more requests
            loop.call_soon_threadsafe(self._ended)

    def _ended(self) -> None:
        self._making -= 1


@dataclass(slots=True, eq=False)
class _Work:
    """One heat map, made in a thread.

    Attributes:
        until: The deadline, on the event loop's clock.
        wanted: Whether the client still waits.
    """

    model: Model
    image: Pixels
    class_index: int | None
    predictor: Predictor
    loop: asyncio.AbstractEventLoop
    until: float
    wanted: bool = True

    def run(self) -> Explained:
        model, image = self.model, self.image
        index = self.class_index
        if index is None:
            index = model.answer(self._forward(image[None])[0]).class_index
        target = model.task.target(index)
        return Explained(
            model, image, index, heat_map(model.forward, model.spec, image, target, self._forward)
        )

    def _forward(self, images: Pixels) -> Logits:
        """Return the logits, float32 (n, outputs), of `images`, which go through the engine's queue."""
        left = self.until - self.loop.time()
        if not self.wanted or left <= 0:
            raise DeadlineExceeded(_TOO_LATE)
        queued = asyncio.run_coroutine_threadsafe(self._queued(images), self.loop)
        try:
            return queued.result(left)
        except TimeoutError:
            queued.cancel()
            raise DeadlineExceeded(_TOO_LATE) from None
        finally:
            del queued  # see `explain`

    async def _queued(self, images: Pixels) -> Logits:
        futures: list[asyncio.Future[Inference]] = [self.loop.create_future() for _ in images]
        for number, image in enumerate(images):
            self.predictor.batcher.put(Entry(self.model, futures[number], image))
        try:
            return np.stack([inference.logits for inference in await asyncio.gather(*futures)])
        finally:
            futures.clear()  # see `explain`
