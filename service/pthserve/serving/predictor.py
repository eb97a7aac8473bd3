"""Predictor: answers requests, from image bytes to predictions, with the current model."""

import asyncio
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from random import Random
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pthserve.engines.base import Completes, Settles
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
    PLANNED_LATENCY,
    PLANNED_RATE,
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
from pthserve.serving.observers import Observers
from pthserve.serving.prediction import Input, Prediction, prediction_of, trace
from pthserve.settings import Settings
from pthserve.tasks.base import Deferred, Work
from pthserve.tracing import SPAN

CLOSING = 2.0
"""Maximum time in seconds for the threads to end, when no client waits any more."""

LOADING = "the model is loading"


class Predictor:
    """Admits, decodes, queues and answers images. Only one event loop may use it.

    Only its own methods change its attributes.

    Attributes:
        current: The model for new requests, or None before the first one. It is replaced by assignment; a
            request in flight keeps the model that it started with.
        unready: Why the service is not ready for traffic, or None.
        draining: Whether the service is shutting down.
        golden: Result of the golden images of the current model: agreed, disagreed or unchecked.
        last_reload: Result of the last attempt to replace the model, for /info.
        files_changed: Whether the files of the current model have changed since it was loaded.
        last_rollout: Agreement with another release, for /info; None if there is nothing to compare with.
        observers: Called with the images and predictions of each live request.
        instance: Identifies this process among all that serve the model.
        cpus: Number of CPUs that the service uses.
    """

    def __init__(self, settings: Settings) -> None:
        self.current: Model | None = None
        self.unready: str | None = LOADING
        self.draining = False
        self.golden = "unchecked"
        self.last_reload: Mapping[str, object] | None = None
        self.files_changed = False
        self.last_rollout: Mapping[str, object] | None = None
        self.observers = Observers()
        self.instance = os.urandom(8).hex()
        self.batcher = Batcher(settings.max_batch)
        self.admission = Admission(settings.max_inflight, self._seconds_for)
        self._settings = settings
        self._closed = False
        self.cpus = settings.cpus
        self._decoders = Decoders(self.cpus, settings.decode_memory)
        CPUS.set(self.cpus)
        PLANNED_RATE.set(settings.planned_rate or 0)
        PLANNED_LATENCY.set(settings.planned_latency or 0)
        INFLIGHT.set_function(lambda: self.admission.inflight)
        QUEUE_DEPTH.set_function(lambda: self.batcher.depth)
        SATURATION.set_function(self.saturation)

    async def predict(self, image: Input, *, deadline: float | None = None) -> Prediction:
        """Return the answer for `image`; see `predict_many`."""
        return (await self.predict_many((image,), deadline=deadline))[0]

    async def predict_many(
        self, images: Sequence[Input], *, deadline: float | None = None, live: bool = True
    ) -> Sequence[Prediction]:
        """Return one answer per image, all from the same model.

        If the call is cancelled, its images that are still queued are skipped.

        Args:
            deadline: Seconds that the client allows; they can only shorten the service's deadline.
            live: False for a copy of a request that is answered elsewhere: its answer is not counted in the
                metrics of predictions, and observers are not called.

        Raises:
            RequestError: An image is invalid.
            Unavailable: A limit is reached, or no model is served now.
            DeadlineExceeded: The deadline passed first.
            EngineFailed: The forward pass failed.
        """
        seconds = self._settings.deadline if deadline is None else min(deadline, self._settings.deadline)
        model = self.model()
        failing = self.observers.of_failures(images) if live else nullcontext()
        with failing, timed_inference(), self.admission.admit(len(images), seconds):
            predictions = await self._answer(model, images, seconds)
        if live:
            for prediction in predictions:
                model.task.count(prediction.answer)
            self.observers.notify(images, predictions)
        if (span := SPAN.get()) is not None:
            trace(span, predictions)
        return predictions

    def check(self, images: int, deadline: float) -> None:
        """Check whether a request would be admitted now, before its body is read.

        Args:
            images: Number of images of the request.
            deadline: Seconds until its deadline.

        Raises:
            Unavailable: A limit is reached, or no model is served now.
            TooLarge: The request has more images than the limit.
        """
        self.model()
        self.admission.check(images, deadline)

    def model(self) -> Model:
        """Return the model for a new request; raises Draining or NotReady."""
        if self._closed:
            count_rejection(Rejection.DRAINING)
            raise Draining("the service is shutting down; send the request to another replica")
        if self.current is None:
            count_rejection(Rejection.NOT_READY)
            raise NotReady(f"the service is not ready: {self.unready}")
        return self.current

    async def warm_up(self, model: Model) -> None:
        """Run `model` for the first time: forward passes of each size, then whole requests.

        The first passes, which are slow, run beside the traffic of the current model. Its large batches need
        much memory; so an engine that saves memory has no large ones until it has replaced the other.
        """
        if self.current is None and not self.draining:
            self.unready = "the model is warming up"
        most = self._settings.max_batch or model.plan.max_batch
        if self.current is not None and isinstance(model.forward, Completes):
            most = min(most, model.forward.lanes)
        images = blank(model.spec, most)
        photo = _photo(model.spec)
        with model.forward.settling() if isinstance(model.forward, Settles) else nullcontext():
            for batch in (images[:1], images):
                await in_background(partial(model.forward, batch))
            for photos in ([photo], [photo] * min(most, self.cpus, 8)):  # more would only take time
                await self._answer(model, photos, float("inf"))

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
        """Set the reason for not being ready while the first model is loading.

        Args:
            stage: The current step of loading, in words, or "".
        """
        if self.current is None and not self.draining:
            self.unready = f"{LOADING}: {stage}" if stage else LOADING

    def resize(self, cpus: int) -> None:
        """Decode on `cpus` CPUs from now on. This does not change the model's engine; see `Resize`."""
        self.cpus = cpus
        self._decoders.resize(cpus)
        CPUS.set(cpus)

    def record_reload(self, outcome: Mapping[str, object]) -> None:
        """Set the outcome of the last attempt to replace the model."""
        self.last_reload = outcome

    def record_rollout(self, agreement: Mapping[str, object]) -> None:
        """Set the agreement with another release."""
        self.last_rollout = agreement

    def record_files_changed(self, changed: bool) -> None:
        """Set whether the files of the current model differ from those that it was loaded from."""
        self.files_changed = changed
        MODEL_FILES_CHANGED.set(changed)

    async def decoded(self, image: Input, spec: Spec, seconds: float) -> NDArray[Any]:
        """Return `image` decoded and preprocessed as `spec` states; see `preprocess.Prepared`.

        Raises:
            RequestError: The image is invalid.
            Overloaded: Its turn to be decoded would come too late.
            DeadlineExceeded: It is not decoded after `seconds`.
        """
        pixels: NDArray[Any] = (
            await self._done([_job(partial(self._pending, image, spec), seconds)], seconds)
        )[0]
        return pixels

    async def computed(self, works: Sequence[Work], seconds: float) -> Sequence[Any]:
        """Return the result of each of `works`, computed in the decoders' threads; raises as `decoded`."""
        return await self._done([_job(partial(_opened, work), seconds, "answer") for work in works], seconds)

    def saturation(self) -> float:
        """Return the load as a share of the capacity, 0 to 1: of the engine or the decoders, if higher."""
        return max(self.batcher.busy.share(), self._decoders.busy.share())

    def live(self) -> str | None:
        """Return why the process should be restarted, or None.

        After twice the deadline, the clients of a forward pass, and those that wait for it, have left.
        """
        if not self.batcher.alive:
            return "the engine's thread has died"
        stuck = self.batcher.stuck_for()
        if stuck > 2 * self._settings.deadline:
            return f"the engine has been in one forward pass for {stuck:.0f} s"
        return None

    def drain(self) -> None:
        """Report not ready, so that new traffic is sent elsewhere; requests are still answered."""
        self.draining = True
        self.unready = "the service is shutting down"

    def close(self) -> None:
        """Refuse new requests and end the threads, but wait at most CLOSING seconds for them."""
        self.drain()
        self._closed = True
        end = time.monotonic() + CLOSING
        self._decoders.close(CLOSING)
        self.batcher.close(max(0.0, end - time.monotonic()))
        for gauge in (INFLIGHT, QUEUE_DEPTH, SATURATION):
            gauge.set_function(lambda: 0.0)

    def _seconds_for(self, images: int) -> float:
        """Return the seconds for `images` images of the slower one of decoders and engine, as measured."""
        engine = images * self.batcher.seconds_per_image
        return max(engine, self._decoders.seconds_for(images)) + self.batcher.overdue()

    def _pending(self, image: Input, spec: Spec) -> Pending:
        """Return `image`, not decoded yet, after checking it against the limits of the settings."""
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
        futures = [job.future for job in jobs if job.future is not None]
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
            while futures:  # an exception refers to this frame, and must not form a reference cycle
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
        """Queue decoded pixels for the engine; called in a decoder's thread, not in the event loop."""
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
    with suppress(RuntimeError):  # the loop is closed: no client waits
        future.get_loop().call_soon_threadsafe(_set_result, future, result)


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _photo(spec: Spec) -> bytes:
    """Return a JPEG of noise with the size of a common photo, 500 x 375 pixels."""
    mode = "L" if spec.channels == 1 else "RGB"
    noise = Random(0).randbytes(500 * 375 * len(mode))  # noqa: S311 - NumPy's takes 10 ms to import
    file = io.BytesIO()
    Image.frombytes(mode, (500, 375), noise).save(file, "JPEG")
    return file.getvalue()


def _show(agreement: Evidence | None) -> None:
    """Set the metrics that compare the model with fp32 PyTorch."""
    if agreement is None:
        show_agreement({}, None, None, None)
        return
    differences = {"mean": agreement.mean, "p95": agreement.p95, "largest": agreement.largest}
    show_agreement(differences, agreement.same, agreement.clear, agreement.kept)
