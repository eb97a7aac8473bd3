"""Predictor: one request from bytes to answer, and the current model."""

import asyncio
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pthserve.engines.base import Settles
from pthserve.errors import DeadlineExceeded, Draining, MalformedRequest, NotReady, RequestError, TooLarge
from pthserve.images.cost import FREE
from pthserve.images.preprocess import Pending, blank, pending, pending_pixels
from pthserve.images.spec import Spec
from pthserve.loading.model import Model
from pthserve.metrics import (
    CPUS,
    INFLIGHT,
    MODEL_FILES_CHANGED,
    MODEL_INFO,
    QUEUE_DEPTH,
    SATURATION,
    Rejection,
    count_rejection,
    show_agreement,
    timed_inference,
)
from pthserve.planning.agreement import Evidence
from pthserve.serving.admission import Admission
from pthserve.serving.background import in_background
from pthserve.serving.batcher import Batcher, Entry, Inference
from pthserve.serving.decoders import Decoders, Job
from pthserve.serving.prediction import Input, Prediction, prediction_of, trace
from pthserve.settings import Settings
from pthserve.tasks.base import Deferred, Work
from pthserve.tracing import SPAN

CLOSING = 2.0
"""Maximum time in seconds for the threads to end, when no client waits any more."""

LOADING = "the model is loading"

Observer = Callable[[Sequence[Input], Sequence[Prediction]], None]
"""Gets the images and the predictions of a request."""


class Predictor:
    """Admits, decodes, queues and answers images. One event loop uses it.

    Only its own methods change its attributes.

    Attributes:
        current: The model for new requests, or None before the first one. It is replaced by assignment; a
            request in flight keeps the model that it started with.
        unready: Why the service is not ready for traffic, or None.
        draining: Whether the service is shutting down.
        golden: Result of the golden images of the current model: agreed, disagreed or unchecked.
        last_reload: Result of the last attempt to replace the model, for /info.
        files_changed: Whether the files of the current model have changed since it was loaded.
        observer: Gets the images and predictions of each request, or None; see `observed_by`.
        cpus: Number of CPUs that the service uses.
    """

    def __init__(self, settings: Settings) -> None:
        self.current: Model | None = None
        self.unready: str | None = LOADING
        self.draining = False
        self.golden = "unchecked"
        self.last_reload: Mapping[str, object] | None = None
        self.files_changed = False
        self.observer: Observer | None = None
        self.batcher = Batcher(settings.max_batch)
        self.admission = Admission(settings.max_inflight, self._seconds_for)
        self._settings = settings
        self._closed = False
        self.cpus = settings.cpus
        self._decoders = Decoders(self.cpus, settings.decode_memory)
        CPUS.set(self.cpus)
        INFLIGHT.set_function(lambda: self.admission.inflight)
        QUEUE_DEPTH.set_function(lambda: self.batcher.depth)
        SATURATION.set_function(self.saturation)

    async def predict(self, image: Input, *, deadline: float | None = None) -> Prediction:
        """The answer for `image`; see `predict_many`."""
        return (await self.predict_many((image,), deadline=deadline))[0]

    async def predict_many(
        self, images: Sequence[Input], *, deadline: float | None = None
    ) -> Sequence[Prediction]:
        """One answer an image, all from the same model.

        deadline: seconds that the client grants; it can only shorten the service's own.
        Raises a RequestError where an image is at fault, Unavailable where there is no room or no model,
        DeadlineExceeded, or EngineFailed. A cancelled call costs no forward pass that has not begun.
        """
        seconds = self._settings.deadline if deadline is None else min(deadline, self._settings.deadline)
        model = self.model()
        with timed_inference(), self.admission.admit(len(images), seconds):
            predictions = await self._answer(model, images, seconds)
        for prediction in predictions:
            model.task.count(prediction.answer)
        if self.observer is not None:
            self.observer(images, predictions)
        if (span := SPAN.get()) is not None:
            trace(span, predictions)
        return predictions

    def check(self, images: int, deadline: float) -> None:
        """Raise what keeps a request of `images` images out now; before its body is worth reading."""
        self.model()
        self.admission.check(images, deadline)

    def model(self) -> Model:
        """The model that a request which comes now is given; raises Draining or NotReady."""
        if self._closed:
            count_rejection(Rejection.DRAINING)
            raise Draining("the service is shutting down; send the request to another replica")
        if self.current is None:
            count_rejection(Rejection.NOT_READY)
            raise NotReady(f"the service is not ready: {self.unready}")
        return self.current

    async def warm_up(self, model: Model) -> None:
        """Run `model` for the first time: forward passes of each size, then whole requests.

        The first passes, which are slow, run beside the traffic of the current model.
        """
        if self.current is None and not self.draining:
            self.unready = "the model is warming up"
        most = self._settings.max_batch or model.plan.max_batch
        images = blank(model.spec, most)
        for batch in (images[:1], images):
            await in_background(partial(model.forward, batch))
        photo = _photo(model.spec)
        for photos in ([photo], [photo] * most):
            await self._answer(model, photos, float("inf"))
        if isinstance(model.forward, Settles):
            model.forward.settle()

    def adopt(self, model: Model, golden: str = "unchecked") -> None:
        """Use `model` for all new requests.

        Args:
            model: The new model, after `warm_up`.
            golden: The result of its golden images: agreed, disagreed or unchecked.
        """
        self.current, self.golden = model, golden
        self.batcher.restart_estimates()
        if not self.draining:
            self.unready = None
        MODEL_INFO.info(
            {
                "name": model.name,
                "version": model.version,
                "architecture": model.architecture,
                "digest": model.digest,
                "engine": model.forward.name,
                "precision": model.forward.precision,
            }
        )
        _show(model.plan.agreement)

    def record_loading(self, stage: str) -> None:
        """Say what the load of the first model is doing, in words, or ""."""
        if self.current is None and not self.draining:
            self.unready = f"{LOADING}: {stage}" if stage else LOADING

    def resize(self, cpus: int) -> None:
        """Use so many CPUs from now on; the engine is the model's, see `Resize`."""
        self.cpus = cpus
        self._decoders.resize(cpus)
        CPUS.set(cpus)

    def record_reload(self, outcome: Mapping[str, object]) -> None:
        """Keep the outcome of an attempt to replace the model."""
        self.last_reload = outcome

    def record_files_changed(self, changed: bool) -> None:
        """Keep whether the files of the current model differ from those it was loaded from."""
        self.files_changed = changed
        MODEL_FILES_CHANGED.set(changed)

    @contextmanager
    def observed_by(self, observer: Observer) -> Iterator[None]:
        """Pass the images and predictions of each request to `observer` until the block ends."""
        self.observer = observer
        try:
            yield
        finally:
            self.observer = None

    async def decoded(self, image: Input, spec: Spec, seconds: float) -> NDArray[Any]:
        """`image` as an engine takes it, from the decoders' queue.

        Raises a RequestError, Overloaded, or DeadlineExceeded after so many seconds.
        """
        pixels: NDArray[Any] = (
            await self._done([_job(partial(self._pending, image, spec), seconds)], seconds)
        )[0]
        return pixels

    async def computed(self, works: Sequence[Work], seconds: float) -> Sequence[Any]:
        """What each of `works` gives, from the decoders' queue, which bounds their costs; see `decoded`."""
        return await self._done([_job(partial(_opened, work), seconds, "answer") for work in works], seconds)

    def saturation(self) -> float:
        """How close the service is to what it can do, 0 to 1: how busy its engine is, or its decoders."""
        return max(self.batcher.busy.share(), self._decoders.busy.share())

    def live(self) -> str | None:
        """Why the process should be restarted, in words, or None.

        A forward pass that takes twice the deadline answers nobody, nor does one that waits for it.
        """
        if not self.batcher.alive:
            return "the engine's thread has died"
        stuck = self.batcher.stuck_for()
        if stuck > 2 * self._settings.deadline:
            return f"the engine has been in one forward pass for {stuck:.0f} s"
        return None

    def drain(self) -> None:
        """Send new traffic elsewhere, and answer what comes nevertheless."""
        self.draining = True
        self.unready = "the service is shutting down"

    def close(self) -> None:
        """Let nobody in, and end the threads: those that take longer than CLOSING are left behind."""
        self.drain()
        self._closed = True
        end = time.monotonic() + CLOSING
        self._decoders.close(CLOSING)
        self.batcher.close(max(0.0, end - time.monotonic()))
        for gauge in (INFLIGHT, QUEUE_DEPTH, SATURATION):
            gauge.set_function(lambda: 0.0)

    def _seconds_for(self, images: int) -> float:
        """Seconds in which the slower of decoders and engine gets through `images` images, as measured."""
        engine = images * self.batcher.seconds_per_image
        return max(engine, self._decoders.seconds_for(images)) + self.batcher.overdue()

    def _pending(self, image: Input, spec: Spec) -> Pending:
        """`image`, to be made what an engine takes, within the limits of the settings."""
        limit = self._settings.max_pixels
        if isinstance(image, bytes):
            return pending(image, spec, decode=self._settings.decode, max_pixels=limit)
        if image.dtype == np.float32:
            if not spec.takes(image.shape):
                usual = "one such as " * spec.whole
                raise MalformedRequest(
                    f"the tensor has the shape {image.shape}; the model needs {usual}{spec.tensor_shape}"
                )
            return Pending(image.shape[:0:-1], FREE, lambda: image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise MalformedRequest(
                f"the pixels are {image.dtype} {image.shape}; the model needs uint8 (height, width, 3)"
            )
        if image.shape[0] * image.shape[1] > limit:
            raise TooLarge(f"the image has more than {limit} pixels, which is the limit")
        return pending_pixels(cast("NDArray[np.uint8]", image), spec)

    async def _answer(self, model: Model, images: Sequence[Input], seconds: float) -> Sequence[Prediction]:
        until = time.monotonic() + seconds
        then = partial(self._queue, model)
        jobs = [_job(partial(self._pending, image, model.spec), seconds, then=then) for image in images]
        inferences: Sequence[Inference] = await self._done(jobs, seconds)
        predictions = [
            prediction_of(model, image, inference)
            for image, inference in zip(images, inferences, strict=True)
        ]
        answers = [one.answer for one in predictions if isinstance(one.answer, Deferred)]
        if answers:
            await self.computed([answer.computing for answer in answers], until - time.monotonic())
        return predictions

    async def _done(self, jobs: list[Job], seconds: float) -> Sequence[Any]:
        """What the futures of `jobs` are given. Raises what one of them raises, or DeadlineExceeded."""
        futures = [job.future for job in jobs]
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, _expire, futures) if seconds < float("inf") else None
        try:
            for job in jobs:
                self._decoders.submit(job)
            return [await futures[0]] if len(futures) == 1 else await asyncio.gather(*futures)
        except RequestError as error:
            if len(futures) > 1:
                number = next((n for n, future in enumerate(futures, 1) if _raises(future, error)), 0)
                error.args = (f"image {number} of {len(futures)}: {error}",)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            while futures:  # what one raises leads to this frame, and must not lead back to it
                futures.pop().cancel()
            while jobs:
                jobs.pop().drop()

    def _queue(
        self,
        model: Model,
        future: asyncio.Future[Inference],
        pixels: NDArray[Any],
        seconds: float,
        size: tuple[int, int],
    ) -> None:
        """Goes straight from a decoder's thread to the engine's: the event loop has no part in it."""
        self.batcher.put(Entry(model, future, pixels, seconds, size))


def _expire(futures: Sequence[asyncio.Future[Any]]) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(DeadlineExceeded("the deadline passed before the answer was ready"))


def _raises(future: asyncio.Future[Any], error: BaseException) -> bool:
    return future.done() and not future.cancelled() and future.exception() is error


def _job(
    opening: Callable[[], Pending],
    seconds: float,
    stage: str = "decode",
    then: Callable[..., None] | None = None,
) -> Job:
    """A job that nobody waits for after so many seconds.

    then: called with its future and what `Job.decoded` is called with; by default, the future is given the
    result.
    """
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    return Job(future, opening, partial(then or _deliver, future), time.monotonic() + seconds, stage)


def _opened(work: Work) -> Pending:
    return Pending((1, 1), *work)


def _deliver(future: asyncio.Future[Any], result: Any, _: float, __: tuple[int, int]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        future.get_loop().call_soon_threadsafe(_set_result, future, result)


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _photo(spec: Spec) -> bytes:
    """A JPEG of the size of an ordinary photo."""
    noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert("L" if spec.channels == 1 else "RGB").save(file, "JPEG")
    return file.getvalue()


def _show(agreement: Evidence | None) -> None:
    """Show in the metrics how the model compares with fp32 PyTorch."""
    if agreement is None:
        show_agreement({}, None, None, None)
        return
    differences = {"mean": agreement.mean, "p95": agreement.p95, "largest": agreement.largest}
    show_agreement(differences, agreement.same, agreement.clear, agreement.kept)
