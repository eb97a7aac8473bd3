"""Batcher: the queue of images and the threads that run the engine.

There is no timer: a batch consists of the images that arrived while the engine was busy.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Images
from pthserve.errors import EngineFailed
from pthserve.loading.model import Model
from pthserve.metrics import BATCH_SIZE, FORWARD_DURATION, STAGE_DURATION
from pthserve.serving.estimators import Busy, Smoothed
from pthserve.tasks.base import ANY, Size

log = logging.getLogger(__name__)
_QUEUE = STAGE_DURATION.labels("queue")
_INFER = STAGE_DURATION.labels("infer")


LANES = 2
"""Number of threads: forward passes that run at the same time, if the engine has as many lanes."""


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """The engine's outputs for one image, with durations.

    Attributes:
        logits: float32 (outputs,).
        decode: Seconds to decode and preprocess the image.
        queue: Seconds in the queue.
        infer: Seconds of the forward pass.
        batch: Number of images in the same forward pass.
        since: When the image was queued, on the clock of time.perf_counter().
        size: (width, height) of the image as sent.
    """

    logits: NDArray[np.float32]
    decode: float
    queue: float
    infer: float
    batch: int
    since: float
    size: Size = (1, 1)


@dataclass(slots=True, eq=False)
class Entry:
    """One image in the queue.

    Attributes:
        model: The model that must answer it.
        future: Receives the result. Once it is done, even if cancelled, the entry is skipped.
        image: uint8 (height, width, channels) or float32 (channels, height, width).
        decode: Seconds that it took to decode and preprocess the image.
        size: (width, height) of the image as sent.
        since: When it was queued, on the clock of time.perf_counter().
    """

    model: Model
    future: asyncio.Future[Inference]
    image: NDArray[np.uint8] | NDArray[np.float32]
    decode: float = 0.0
    size: Size = (1, 1)
    since: float = field(default_factory=time.perf_counter)

    def joins(self, other: "Entry") -> bool:
        """Return whether both may be in the same forward pass."""
        return (
            self.model is other.model
            and self.image.shape == other.image.shape
            and self.image.dtype == other.image.dtype
        )


@dataclass(slots=True, eq=False)
class _Pass:
    """A forward pass that is running."""

    model: Model
    began: float = field(default_factory=time.perf_counter)


class Batcher:
    """Runs the forward passes for queued entries, in the order of arrival.

    As many passes run at the same time as the engine has lanes, and the queue is divided evenly among them.
    All futures must belong to one event loop. Any thread may call `put`.

    Args:
        max_batch: Maximum number of images in one forward pass; None uses the plan of each model.
    """

    def __init__(self, max_batch: int | None = None) -> None:
        self._max_batch = max_batch
        self._queue: deque[Entry] = deque()
        self._lock = threading.Lock()
        self._idle: list[threading.Condition] = []
        self._closed = False
        self._passes: list[_Pass] = []
        self._seconds_per_image = Smoothed()
        self._seconds_per_batch = Smoothed()
        self.busy = Busy()
        # Daemon threads: an engine that hangs must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{number}", daemon=True)
            for number in range(LANES)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, entry: Entry) -> None:
        """Queue `entry`; its future receives an Inference, or EngineFailed."""
        with self._lock:
            self._queue.append(entry)
            self._wake()

    def close(self, timeout: float) -> None:
        """Answer all queued entries and end the threads; wait for them for at most `timeout` seconds."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._wake()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    @property
    def depth(self) -> int:
        """Number of images that wait for the engine."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether all threads of the engine are running."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def seconds_per_image(self) -> float:
        """Recent average of the seconds per image: a pass's duration by its images and by concurrent passes.

        0 before the first pass.
        """
        return self._seconds_per_image.value

    def restart_estimates(self) -> None:
        """Start new averages of the durations, since another engine is used from now on."""
        self._seconds_per_image.restart()
        self._seconds_per_batch.restart()

    def stuck_for(self) -> float:
        """Return the seconds since the oldest running forward pass began; 0 if none is running."""
        passes = tuple(self._passes)
        return time.perf_counter() - passes[0].began if passes else 0.0

    def overdue(self) -> float:
        """Return by how many seconds the oldest running pass exceeds twice the average duration, or 0."""
        return max(0.0, self.stuck_for() - 2 * self._seconds_per_batch.value)

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            self._answer(*taken)
            del taken  # an idle thread must not keep a model alive

    def _next(self) -> tuple[_Pass, list[Entry]] | None:
        """Wait until a pass may begin, and return it with its batch; None if the batcher is closed."""
        woken = threading.Condition(self._lock)
        with self._lock:
            batch: list[Entry] = []
            while not batch:  # the entries may have been cancelled meanwhile
                while not self._may_begin():
                    if self._closed and not self._queue:
                        return None
                    self._idle.append(woken)
                    woken.wait()
                batch = self._take()
            begun = _Pass(batch[0].model)
            self._passes.append(begun)
            if self._queue:
                self._wake()  # there may be another lane
            return begun, batch

    def _wake(self) -> None:
        """Wake the thread that worked last, since engines keep memory for each thread that calls them."""
        if self._idle:
            self._idle.pop().notify()

    def _may_begin(self) -> bool:
        """Return whether an entry waits and its model's engine has a free lane."""
        while self._queue and self._queue[0].future.done():
            self._queue.popleft()
        if not self._queue or not self._passes:
            return bool(self._queue)
        model = self._queue[0].model
        return len(self._passes) < model.forward.lanes and self._passes[0].model is model

    def _take(self) -> list[Entry]:
        """Remove one lane's share of the queue and return it, as far as it fits one batch.

        Entries whose future is done are removed, too.
        """
        first = self._queue[0]
        share = math.ceil(len(self._queue) / first.model.forward.lanes)
        most = min(share, self._most(first.model))
        batch: list[Entry] = []
        while self._queue and len(batch) < most:
            entry = self._queue[0]
            if not entry.future.done():
                if not entry.joins(first):
                    break
                batch.append(entry)
            self._queue.popleft()
        return batch

    def _most(self, model: Model) -> int:
        return self._max_batch or model.plan.max_batch

    def _answer(self, begun: _Pass, batch: Sequence[Entry]) -> None:
        answers: Sequence[Inference | EngineFailed]
        try:
            answers = self._infer(begun, batch)
        except Exception as error:  # any error of the engine's library, including a lack of memory
            log.exception("the forward pass of %d images failed", len(batch))
            # A new error: the traceback of this one would keep the batch's arrays in memory.
            message = f"the model's forward pass failed: {type(error).__name__}; see the service's log"
            answers = [EngineFailed(message) for _ in batch]
        with suppress(RuntimeError):  # the loop is closed: no client waits
            batch[0].future.get_loop().call_soon_threadsafe(_deliver, batch, answers)

    def _infer(self, begun: _Pass, batch: Sequence[Entry]) -> list[Inference]:
        size = len(batch)
        model = begun.model
        at_once = len(self._passes)
        try:
            with self.busy:
                began = time.perf_counter()
                images = batch[0].image[None] if size == 1 else np.stack([entry.image for entry in batch])
                logits = np.asarray(model.forward(cast("Images", images)), np.float32)
                seconds = time.perf_counter() - began
        finally:
            with self._lock:
                self._passes.remove(begun)
                if self._queue or self._closed:
                    self._wake()  # a thread that waits for another model, or for the end
        outputs = model.outputs if model.outputs != ANY else logits.shape[-1]
        if logits.shape != (size, outputs):
            raise ValueError(f"the engine returned the shape {logits.shape}; expected {(size, outputs)}")
        self._seconds_per_image.observe(seconds / size / at_once, size)
        self._seconds_per_batch.observe(seconds)
        BATCH_SIZE.observe(size)
        FORWARD_DURATION.labels(size).observe(seconds)
        answers = []
        for entry, row in zip(batch, logits, strict=True):
            waited = began - entry.since
            _QUEUE.observe(waited)
            _INFER.observe(seconds)
            answers.append(Inference(row, entry.decode, waited, seconds, size, entry.since, entry.size))
        return answers


def _deliver(batch: Sequence[Entry], answers: Sequence[Inference | EngineFailed]) -> None:
    for entry, answer in zip(batch, answers, strict=True):
        if entry.future.done():
            continue
        if isinstance(answer, EngineFailed):
            entry.future.set_exception(answer)
        else:
            entry.future.set_result(answer)
