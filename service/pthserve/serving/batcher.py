"""Batcher: a deque and the thread that runs the engine. No timer: a batch is what came while it was busy."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pthserve.errors import EngineFailed
from pthserve.metrics import BATCH_SIZE, FORWARD_DURATION, STAGE_DURATION
from pthserve.model import Model
from pthserve.model.engine import Images
from pthserve.serving.busy import Busy, Smoothed

log = logging.getLogger(__name__)
_QUEUE = STAGE_DURATION.labels("queue")
_INFER = STAGE_DURATION.labels("infer")


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """What the engine said of one image, and when.

    logits: float32 (classes,); decode, queue, infer: seconds; batch: images in the same forward pass.
    since: when it was queued, on time.perf_counter()'s clock.
    """

    logits: NDArray[np.float32]
    decode: float
    queue: float
    infer: float
    batch: int
    since: float


@dataclass(slots=True, eq=False)
class Entry:
    """One image on its way through the engine of the model it was admitted for.

    future: whoever waits; once it is done, for whatever reason, nothing is spent on the entry any more.
    image: uint8 (height, width, channels) or float32 (channels, height, width).
    decode: seconds that it took to make `image` of what the client sent.
    """

    model: Model
    future: asyncio.Future[Inference]
    image: NDArray[np.uint8] | NDArray[np.float32]
    decode: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def joins(self, other: "Entry") -> bool:
        """Whether both may be in one forward pass."""
        return (
            self.model is other.model
            and self.image.shape == other.image.shape
            and self.image.dtype == other.image.dtype
        )


class Batcher:
    """Runs the engines of the entries it is given, one batch at a time, first come first served.

    max_batch: most images in one forward pass; None leaves it to each model's plan.
    All futures belong to one event loop; any thread may `put`.
    """

    def __init__(self, max_batch: int | None = None) -> None:
        self._max_batch = max_batch
        self._queue: deque[Entry] = deque()
        self._ready = threading.Condition(threading.Lock())
        self._closed = False
        self._began: float | None = None
        self._seconds_per_image = Smoothed()
        self._seconds_per_batch = Smoothed()
        self.busy = Busy()
        # A daemon: an engine that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Queue `entry`; its future gets an Inference, or EngineFailed."""
        with self._ready:
            self._queue.append(entry)
            self._ready.notify()

    def close(self, timeout: float) -> None:
        """Run what is queued, and end the thread; wait for it up to `timeout` seconds."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join(timeout)

    @property
    def depth(self) -> int:
        """Images that wait for the engine."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread is there to answer."""
        return self._thread.is_alive()

    @property
    def seconds_per_image(self) -> float:
        """What an image costs in a batch of the sizes seen lately; 0 before the first."""
        return self._seconds_per_image.value

    def stuck_for(self) -> float:
        """Seconds that the present forward pass has been running; 0 when there is none."""
        began = self._began
        return 0.0 if began is None else time.perf_counter() - began

    def overdue(self) -> float:
        """Seconds that the present forward pass has been running beyond what such a pass takes."""
        return max(0.0, self.stuck_for() - 2 * self._seconds_per_batch.value)

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._queue and not self._closed:
                    self._ready.wait()
                batch = self._take()
                if not batch and self._closed:
                    return
            if batch:
                self._answer(batch)
            del batch  # an idle thread must not keep a model alive

    def _take(self) -> list[Entry]:
        """The longest run at the head that can be one batch, without those that nobody waits for."""
        batch: list[Entry] = []
        while self._queue and (not batch or len(batch) < self._most(batch[0].model)):
            entry = self._queue[0]
            if not entry.future.done():
                if batch and not entry.joins(batch[0]):
                    break
                batch.append(entry)
            self._queue.popleft()
        return batch

    def _most(self, model: Model) -> int:
        return self._max_batch or model.plan.max_batch

    def _answer(self, batch: Sequence[Entry]) -> None:
        answers: Sequence[Inference | EngineFailed]
        try:
            answers = self._infer(batch)
        except Exception as error:  # whatever an engine's library raises, running out of memory included
            log.exception("the forward pass of %d images failed", len(batch))
            # The traceback would keep the batch's arrays alive for as long as the error is.
            message = f"the model's forward pass failed: {type(error).__name__}; see the service's log"
            answers = [EngineFailed(message) for _ in batch]
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            batch[0].future.get_loop().call_soon_threadsafe(_deliver, batch, answers)

    def _infer(self, batch: Sequence[Entry]) -> list[Inference]:
        size = len(batch)
        model = batch[0].model
        with self.busy:
            self._began = began = time.perf_counter()
            try:
                images = batch[0].image[None] if size == 1 else np.stack([entry.image for entry in batch])
                logits = np.asarray(model.forward(cast("Images", images)), np.float32)
            finally:
                self._began = None
        seconds = time.perf_counter() - began
        if logits.shape != (size, model.num_classes):
            raise ValueError(
                f"the engine answered {logits.shape} where {(size, model.num_classes)} was expected"
            )
        self._seconds_per_image.observe(seconds / size, size)
        self._seconds_per_batch.observe(seconds)
        BATCH_SIZE.observe(size)
        FORWARD_DURATION.labels(size).observe(seconds)
        answers = []
        for entry, row in zip(batch, logits, strict=True):
            waited = began - entry.since
            _QUEUE.observe(waited)
            _INFER.observe(seconds)
            answers.append(Inference(row, entry.decode, waited, seconds, size, entry.since))
        return answers


def _deliver(batch: Sequence[Entry], answers: Sequence[Inference | EngineFailed]) -> None:
    for entry, answer in zip(batch, answers, strict=True):
        if entry.future.done():
            continue
        if isinstance(answer, EngineFailed):
            entry.future.set_exception(answer)
        else:
            entry.future.set_result(answer)
