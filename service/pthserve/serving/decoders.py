"""Decoders: the threads that make pixels of what clients send, and answers of what takes as long, within one
bound of memory."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from pthserve.errors import Overloaded, RequestError, TooLarge
from pthserve.images.preprocess import Pending
from pthserve.metrics import DECODE_MEMORY, STAGE_DURATION, Rejection, count_rejection
from pthserve.serving.admission import SHARE_OF_DEADLINE
from pthserve.serving.estimators import Busy, Smoothed

SLOW = 0.5
"""Seconds of CPU, as the cost says, from which an image is slow: 50 million pixels of an ordinary JPEG, 14
million of a WebP. Slow images leave a decoder's thread free for the others."""
SMALL = 16
"""Images that take no more than a part in so many of the memory overtake those that wait for theirs."""

_STAGES = {stage: STAGE_DURATION.labels(stage) for stage in ("decode", "answer")}


@dataclass(slots=True, eq=False)
class Job:
    """One image to be decoded, or an answer to be computed.

    future: whoever waits; it is given the error where there is one. Once it is done nothing more is begun.
    open: reads the header. decoded: called in a decoder's thread with the pixels, the seconds they took, and
    the (width, height) of the image.
    until: the time, on time.monotonic()'s clock, after which nobody waits. stage: `decode` or `answer`.
    """

    future: asyncio.Future[Any]
    open: Callable[[], Pending] | None
    decoded: Callable[[NDArray[Any], float, tuple[int, int]], None]
    until: float
    stage: str = "decode"
    pending: Pending | None = field(default=None, init=False)
    spent: float = field(default=0.0, init=False)

    def drop(self) -> None:
        """Let go of the image; for when nobody waits any more."""
        self.open = self.pending = None


class Decoders:
    """Decodes the jobs it is given, first come first served where memory allows. Any thread may use it.

    What an image takes is reserved before its pixels are decoded, and given back by the thread that decoded
    it, whether anybody still waits or not. An image for which there is no room waits, and so does a slow one
    while as many slow ones are decoded as may be; others overtake it.

    cpus: how many images are decoded at once; one fewer where they are slow, but always one.
    memory: bytes that all images may take while they are decoded.
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
        """Decode on so many CPUs from now on. What is being decoded goes on, on however many it is."""
        with self._changed:
            self._cpus = cpus
            self._slow_at_once = max(1, cpus - 1)
            self._wanted = max(2, cpus)
            self.busy.resize(cpus)
            while len(self._threads) < self._wanted:
                # Daemons: an image that takes long must not keep the process from ending.
                thread = threading.Thread(target=self._work, name=f"decode-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()

    def submit(self, job: Job) -> None:
        """Decode `job` when its turn comes."""
        with self._changed:
            self._new.append(job)
            self._changed.notify()

    def seconds_for(self, images: int) -> float:
        """Seconds that so many images take that are not slow, with their answers, as measured."""
        at_once = min(self._cpus, max(1.0, self._memory / max(1.0, self._bytes.value)))
        return images * sum(stage.value for stage in self._seconds.values()) / at_once

    def close(self, timeout: float) -> None:
        """Begin nothing more, and wait up to `timeout` seconds for what is being decoded."""
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
            del job, pending  # an idle thread must not keep an image

    def _next(self) -> Job | None:
        """A job to be decoded, for which its memory is reserved; or one to be opened; None to end the thread.

        A thread ends when the decoders are closed, or where there are more threads than wanted.
        """
        with self._changed:
            while not self._closed:
                if len(self._threads) > self._wanted:
                    self._threads.remove(threading.current_thread())
                    self._changed.notify()  # this one may have been woken for a job
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
        """The first of those that wait which may be decoded now."""
        short = False
        self._waiting = [job for job in self._waiting if not job.future.done() and job.pending is not None]
        for job in self._waiting:
            assert job.pending is not None
            memory, seconds = job.pending.cost
            slow = seconds >= SLOW
            if len(self._slow) >= self._slow_at_once if slow else self._quick >= self._cpus:
                continue
            if memory > self._free or (short and memory > self._memory // SMALL):
                short = True  # what comes behind must not take, again and again, what this one waits for
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
        if opening is None or job.future.done():
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
        """Raise what keeps the image out: it never fits, or its turn would come too late."""
        memory, seconds = pending.cost
        if memory > self._memory:
            raise TooLarge(
                f"the image needs {memory >> 20} MiB to decode; "
                f"the limit is {self._memory >> 20} MiB (decode_memory)"
            )
        if seconds < SLOW:
            return
        with self._changed:
            # Those that are being decoded count, whether anybody still waits for them or not.
            ahead = [*self._slow, *(one for one in self._waiting if not one.future.done())]
            costs = [one.pending.cost.seconds for one in ahead if one.pending is not None]
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
        """Seconds that the image took; counted before its answer can be out."""
        seconds = job.spent + decoding
        _STAGES[job.stage].observe(seconds)
        if pending.cost.seconds >= SLOW:
            self._slowness.observe(seconds / pending.cost.seconds)
        else:
            self._seconds[job.stage].observe(seconds)
            self._bytes.observe(pending.cost.memory)
        return seconds

    def _fail(self, job: Job, error: Exception) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            job.future.get_loop().call_soon_threadsafe(_set_exception, job.future, _bare(error))


def _set_exception(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _bare(error: Exception) -> Exception:
    """`error`, and where the request is at fault not what led to it.

    That leads to the picture, and over the thread's frames to the future that is given the error: a circle,
    which would keep each broken image until the garbage collector comes by.
    """
    if isinstance(error, RequestError | Overloaded):
        error.__cause__ = error.__context__ = None
        error.with_traceback(None)
    return error
