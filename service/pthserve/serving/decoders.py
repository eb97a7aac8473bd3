"""Decoders: the threads that decode images and compute class maps, within a common limit of memory."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from pthserve.errors import Overloaded, RequestError
from pthserve.images.preprocess import Pending
from pthserve.metrics import DECODE_MEMORY, STAGE_DURATION, Rejection, count_rejection
from pthserve.serving.admission import SHARE_OF_DEADLINE
from pthserve.serving.estimators import Busy, Smoothed

SLOW = 0.5
"""Estimated seconds of CPU from which an image counts as slow: 50 million pixels of a baseline JPEG, or 14
million of a WebP. Slow images never occupy all threads."""
SMALL = 16
"""Images that need at most this fraction (1/16) of the memory may overtake images that wait for memory."""

_STAGES = {stage: STAGE_DURATION.labels(stage) for stage in ("decode", "answer")}


@dataclass(slots=True, eq=False)
class Job:
    """One image to decode, or one answer to compute.

    Attributes:
        future: Receives an error. Once it is done, even if cancelled, the job is skipped.
        open: Reads the header of the image.
        decoded: Called in a decoder's thread with the pixels, the seconds that they took, and the
            (width, height) of the image.
        until: The deadline, on the clock of time.monotonic().
        stage: `decode` or `answer`, for the metrics.
        pending: The image after its header was read.
        spent: Seconds that reading the header took.
    """

    future: asyncio.Future[Any]
    open: Callable[[], Pending] | None
    decoded: Callable[[NDArray[Any], float, tuple[int, int]], None]
    until: float
    stage: str = "decode"
    pending: Pending | None = field(default=None, init=False)
    spent: float = field(default=0.0, init=False)

    @property
    def done(self) -> bool:
        """Whether nobody needs the result any more."""
        return self.future.done()

    def drop(self) -> None:
        """Release the image, for when the result is no longer needed."""
        self.open = self.pending = None


class Decoders:
    """Decodes jobs in the order of arrival, as far as memory allows. Any thread may use it.

    The memory for an image is reserved before its pixels are decoded, and released by the thread that decoded
    them, even if the request has ended. An image waits if there is too little memory, or if it is slow and
    the maximum number of slow images is being decoded; other images overtake it.

    Args:
        cpus: Number of images that are decoded at the same time. Slow ones are limited to one fewer, but not
            to fewer than one.
        memory: Maximum number of bytes that all images may need while they are decoded.
    """

    def __init__(self, cpus: int, memory: int) -> None:
        self.busy = Busy(cpus)
        self._memory = memory
        self._free = memory
        self._quick = 0
        self._slow: list[Job] = []
        self._new: deque[Job] = deque()
        self._waiting: list[Job] = []
        self._closed = False
        self._changed = threading.Condition()
        self._seconds = {stage: Smoothed() for stage in _STAGES}
        self._bytes = Smoothed()
        self._slowness = Smoothed()
        DECODE_MEMORY.set_function(lambda: self._memory - self._free)
        self._threads: list[threading.Thread] = []
        self.resize(cpus)

    def resize(self, cpus: int) -> None:
        """Use `cpus` CPUs for the images that are decoded from now on; see `Decoders`."""
        with self._changed:
            self._cpus = cpus
            self._slow_at_once = max(1, cpus - 1)
            self._wanted = max(2, cpus)
            self.busy.resize(cpus)
            while len(self._threads) < self._wanted:
                # Daemon threads: a slow image must not keep the process from ending.
                thread = threading.Thread(target=self._work, name=f"decode-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()

    def submit(self, job: Job) -> None:
        """Queue `job`."""
        with self._changed:
            self._new.append(job)
            self._changed.notify()

    def seconds_for(self, images: int) -> float:
        """Return the seconds that this number of images and their answers need, without slow ones."""
        at_once = min(self._cpus, max(1.0, self._memory / max(1.0, self._bytes.value)))
        return images * sum(stage.value for stage in self._seconds.values()) / at_once

    def close(self, timeout: float) -> None:
        """Drop all queued jobs, and wait at most `timeout` seconds for the images that are being decoded."""
        with self._changed:
            self._closed = True
            self._new.clear()
            self._waiting.clear()
            self._changed.notify_all()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        DECODE_MEMORY.set_function(lambda: 0.0)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            pending = job.pending
            if pending is None:
                self._open(job)
            else:
                self._decode(job, pending)
            del job, pending  # an idle thread must not keep an image in memory

    def _next(self) -> Job | None:
        """Wait for a job: one to decode, whose memory is then reserved, or one whose header to read.

        None ends the thread: the decoders are closed, or there are more threads than needed.
        """
        with self._changed:
            while not self._closed:
                if len(self._threads) > self._wanted:
                    self._threads.remove(threading.current_thread())
                    self._changed.notify()  # the wake-up of this thread may have been for a job
                    return None
                job = self._granted()
                if job is None and self._new and self._quick < self._cpus:
                    job = self._new.popleft()
                if job is not None:
                    if self._new or self._waiting:
                        self._changed.notify()  # there may be something for another thread
                    return job
                self._changed.wait()
        return None

    def _granted(self) -> Job | None:
        """Return the first waiting job that may be decoded now, and reserve its memory."""
        short = False
        self._waiting = [job for job in self._waiting if not job.done and job.pending is not None]
        for job in self._waiting:
            assert job.pending is not None
            memory, seconds = job.pending.cost
            slow = seconds >= SLOW
            if len(self._slow) >= self._slow_at_once if slow else self._quick >= self._cpus:
                continue
            if memory > self._free or (short and memory > self._memory // SMALL):
                short = True  # later images must not keep taking the memory that this one waits for
                continue
            self._waiting.remove(job)
            self._free -= memory
            if slow:
                self._slow.append(job)
            else:
                self._quick += 1
            return job
        return None

    def _open(self, job: Job) -> None:
        opening, job.open = job.open, None
        if opening is None or job.done:
            return
        began = time.perf_counter()
        try:
            pending = opening()
            self._check(job, pending)
        except Exception as error:
            _STAGES[job.stage].observe(time.perf_counter() - began)
            self._fail(job, error)
            return
        job.spent = time.perf_counter() - began
        job.pending = pending
        with self._changed:
            self._waiting.append(job)

    def _check(self, job: Job, pending: Pending) -> None:
        """Raise TooLarge if the image needs too much memory, Overloaded if its turn would come too late."""
        pending.cost.check(self._memory)
        seconds = pending.cost.seconds
        if seconds < SLOW:
            return
        with self._changed:
            # Images that are being decoded count, even if their requests have ended.
            earlier = [*self._slow, *(one for one in self._waiting if not one.done)]
            costs = [one.pending.cost.seconds for one in earlier if one.pending is not None]
        slow = [cost for cost in costs if cost >= SLOW]
        if not slow:
            return
        wait = sum(slow) * self._slowness.value / self._slow_at_once
        if wait + seconds * self._slowness.value > SHARE_OF_DEADLINE * (job.until - time.monotonic()):
            count_rejection(Rejection.WAIT)
            raise Overloaded(
                f"{len(slow)} large images are queued, which takes about {wait:.1f} s; try again after that",
                retry_after=wait,
            )

    def _decode(self, job: Job, pending: Pending) -> None:
        memory, expected = pending.cost
        slow = expected >= SLOW
        began = time.perf_counter()
        try:
            with self.busy:
                pixels = pending.pixels()
        except Exception as error:
            self._count(job, pending, time.perf_counter() - began)
            self._fail(job, error)
        else:
            seconds = self._count(job, pending, time.perf_counter() - began)
            job.decoded(pixels, seconds, pending.upright)
        finally:
            job.drop()
            del pending
            with self._changed:
                self._free += memory
                if slow:
                    self._slow.remove(job)
                else:
                    self._quick -= 1

    def _count(self, job: Job, pending: Pending, decoding: float) -> float:
        """Record the seconds that the image took, before it is answered, and return them."""
        seconds = job.spent + decoding
        _STAGES[job.stage].observe(seconds)
        if pending.cost.seconds >= SLOW:
            self._slowness.observe(seconds / pending.cost.seconds)
        else:
            self._seconds[job.stage].observe(seconds)
            self._bytes.observe(pending.cost.memory)
        return seconds

    def _fail(self, job: Job, error: Exception) -> None:
        with suppress(RuntimeError):  # the loop is closed: no client waits
            job.future.get_loop().call_soon_threadsafe(_set_exception, job.future, _bare(error))


def _set_exception(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _bare(error: Exception) -> Exception:
    """Return `error`; if it is an error of the request, without cause and traceback.

    Those refer to the picture and, through the frames of the thread, to the future that receives the error.
    The reference cycle would keep each broken image in memory until the next garbage collection.
    """
    if isinstance(error, RequestError | Overloaded):
        error.__cause__ = error.__context__ = None
        error.with_traceback(None)
    return error
