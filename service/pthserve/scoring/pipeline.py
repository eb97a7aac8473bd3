"""Pipeline: many images through decoding and the engine, with all CPUs busy and memory bounded.

Unlike the service, which answers an image as soon as it can, the pipeline waits for full batches: nobody
waits for a single answer, and full batches cost least per image.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Images as Batch
from pthserve.engines.base import undivided
from pthserve.errors import EngineFailed, PthserveError, RequestError
from pthserve.images.cost import FREE, Cost
from pthserve.loading.model import Model
from pthserve.scoring.archives import Images
from pthserve.scoring.batches import Batches, Ready, full_batch
from pthserve.scoring.decoding import Decoding
from pthserve.tasks.base import Deferred, Selects, Size

HELD = 256 * 2**20
"""No further image is read while image files and preprocessed images have so many bytes in memory."""
AHEAD = 4
"""Full batches for each lane that may be in the pipeline before their passes, and as many after them."""
_CLOSING = 2.0
"""Maximum time in seconds for the threads to end."""

_log = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""The columns of an answer."""


class Item(NamedTuple):
    """An image to be scored.

    images: The images that it is one of; None for an item that only keeps a place in the order. number: Its
    index in them. group: What its result belongs to.
    """

    images: Images | None
    number: int
    group: Any


class Scored(NamedTuple):
    """The result for an item. row: the answer, or None; error: why there is none, or None."""

    item: Item
    row: Row | None
    error: str | None
    size: Size | None


@dataclass(slots=True, eq=False)
class _Held:
    """An item that is in the pipeline. number: its place in the order. bytes: the memory that it holds."""

    item: Item
    number: int
    bytes: int = 0
    size: Size | None = None

    def result(self, row: Row | None, error: str | None) -> tuple["_Held", Scored]:
        """Return the item, and its result."""
        return self, Scored(self.item, row, error, self.size)


class Pipeline:
    """Scores items once, and returns the results in the same order. The threads end with the iterator.

    Files are read ahead by threads of their own. Then, there are as many threads as CPUs, and each does what
    is next: it decodes images until there is a full batch, and runs its forward pass. So threads seldom wait
    for each other or for the interpreter's lock, and do not take the CPU from a pass. With threads that only
    decode and others that only run passes, a machine of two cores scored 4 % fewer images. Where passes run
    elsewhere than on the CPUs, a thread for each lane is added.

    Args:
        model: The model.
        row: Returns the columns of an answer.
        readers: Number of files that are read at the same time.
        max_bytes: Maximum size of an image file.
        decode_memory: Maximum memory in bytes of all images that are being decoded.
    """

    def __init__(
        self, model: Model, row: Callable[[Any], Row], *, readers: int, max_bytes: int, decode_memory: int
    ) -> None:
        self._model = model
        self._row = row
        self._readers = readers
        self._max_bytes = max_bytes
        self._decoding = Decoding(model, decode_memory)
        self._pass = undivided(model.forward)
        self._lanes = model.forward.lanes
        self._batch = full_batch(model)
        self._waiting = AHEAD * self._batch * self._lanes
        self._most = 2 * self._waiting + 4 * model.options.cpus + readers
        self._beside = isinstance(model.task, Selects)
        lock = threading.Lock()
        self._room = threading.Condition(lock)
        self._work = threading.Condition(lock)
        self._finished = threading.Condition(lock)
        self._feeding = threading.Lock()
        self._inside = self._bytes = self._before_engine = self._numbered = self._passes = 0
        self._files: deque[tuple[_Held, bytes]] = deque()
        self._batches: Batches[_Held] = Batches(self._batch)
        self._answers: deque[tuple[_Held, Any]] = deque()
        self._results: dict[int, Scored] = {}
        self._next = 0
        self._exhausted = self._closed = False
        self._error: BaseException | None = None

    def run(self, items: Iterator[Item]) -> Iterator[Scored]:
        """Score `items`. They are taken from the iterator by other threads, one thread at a time.

        Raises:
            EngineFailed: A forward pass failed.
            PthserveError: A source failed; see `Reader`.
        """
        computing = self._model.options.cpus
        if self._model.plan.device != "cpu":
            computing += self._lanes
        threads = [
            *(threading.Thread(target=self._read, args=(items,), daemon=True) for _ in range(self._readers)),
            *(threading.Thread(target=self._compute, daemon=True) for _ in range(computing)),
        ]
        for thread in threads:
            thread.start()
        try:
            while taken := self._taken():
                yield from taken
        finally:
            self._close()
            for thread in threads:
                thread.join(_CLOSING)

    def _close(self) -> None:
        with self._room:
            self._closed = True
            for condition in (self._room, self._work, self._finished):
                condition.notify_all()
        self._decoding.close()

    def _taken(self) -> list[Scored]:
        """Wait for the next results in order; none if there are no more."""
        taken = []
        with self._finished:
            while self._next not in self._results:
                if self._error is not None:
                    raise self._error
                if self._exhausted and self._next == self._numbered:
                    return []
                self._finished.wait()
            while (scored := self._results.pop(self._next, None)) is not None:
                taken.append(scored)
                self._next += 1
            self._inside -= len(taken)
            self._make_room()
            if not self._before_engine:
                self._work.notify()
        return taken

    def _make_room(self) -> None:
        """Let images be read again once there is room for a whole batch: waking a thread costs time."""
        if self._inside <= self._most - self._batch and self._bytes < HELD:
            self._room.notify(self._most - self._inside)

    def _read(self, items: Iterator[Item]) -> None:
        """Read images, as long as there is room."""
        try:
            while (held := self._admitted(items)) is not None:
                images = held.item.images
                if images is None:
                    self._left(held, None)
                    continue
                try:
                    data = images.read(held.item.number, self._max_bytes)
                except RequestError as error:
                    self._left(held, str(error))
                    continue
                with self._work:
                    self._hold(held, len(data))
                    self._files.append((held, data))
                    self._work.notify()
        except BaseException as error:
            self._fail(error)

    def _admitted(self, items: Iterator[Item]) -> _Held | None:
        """Wait for room, and return the next item; None if there is none, or the pipeline is closed."""
        with self._room:
            while not self._closed and (self._inside >= self._most or self._bytes >= HELD):
                self._room.wait()
            if self._closed or self._exhausted:
                return None
            self._inside += 1
            self._before_engine += 1
        with self._feeding:
            item = None if self._exhausted else next(items, None)
            with self._room:
                if item is not None:
                    self._numbered += 1
                    return _Held(item, self._numbered - 1)
                self._exhausted = True
                self._inside -= 1
                self._before_engine -= 1
                for condition in (self._room, self._work, self._finished):
                    condition.notify_all()
                return None

    def _compute(self) -> None:
        """Do what is next, until the pipeline is closed."""
        try:
            while (step := self._step()) is not None:
                step()
                del step  # a waiting thread must not keep an image in memory
        except BaseException as error:
            self._fail(error)

    def _step(self) -> Callable[[], None] | None:
        """Wait for something to do; None if the pipeline is closed."""
        with self._work:
            while not self._closed:
                if (step := self._possible()) is not None:
                    if self._answers or self._batches or self._files:
                        self._work.notify()  # there may be something for another thread
                    return step
                self._work.wait()
        return None

    def _possible(self) -> Callable[[], None] | None:
        """What can be done now; what is nearest to its result comes first, to free its memory."""
        if self._answers:
            return partial(self._complete, *self._answers.popleft())
        if self._passes < self._lanes and (batch := self._batches.take(partial=self._nothing_to_wait_for())):
            self._passes += 1
            return partial(self._infer, batch)
        if self._files:
            return partial(self._decode, *self._files.popleft())
        return None

    def _nothing_to_wait_for(self) -> bool:
        """Whether no image can come until one of these leaves, or too many of different shapes wait."""
        no_room = self._inside > self._most - self._batch or self._bytes >= HELD  # see `_make_room`
        stuck = no_room and self._next not in self._results  # otherwise a result is taken next
        if not self._before_engine and (self._exhausted or stuck):
            return True
        return len(self._batches) >= self._waiting

    def _decode(self, held: _Held, data: bytes) -> None:
        try:
            pixels, held.size = self._decoding(data)
        except RequestError as error:
            self._left(held, str(error))
        except PthserveError:
            raise
        except Exception as error:
            _log.warning("%s: cannot be decoded", held.item.number, exc_info=error)
            self._left(held, repr(error))
        else:
            with self._work:
                self._hold(held, pixels.nbytes)
                self._before_engine -= 1
                self._batches.add(held, pixels)

    def _infer(self, batch: list[Ready[_Held]]) -> None:
        items = [one.of for one in batch]
        pixels = np.stack([one.pixels for one in batch])
        batch.clear()  # the memory of its pixels
        try:
            logits = np.asarray(self._pass(cast("Batch", pixels)), np.float32)
        except Exception as error:  # any error of the engine's library, including a lack of memory
            raise EngineFailed(
                f"the forward pass of {len(pixels)} images failed: {error or type(error).__name__}"
            ) from error
        with self._work:
            self._passes -= 1
        self._finish(*(one for one in map(self._answered, items, logits) if one is not None))

    def _answered(self, held: _Held, row: NDArray[np.float32]) -> tuple[_Held, Scored] | None:
        """The result for an image, or None if it is still to be computed."""
        assert held.size is not None
        try:
            answer = self._model.answer(row, held.size)
        except EngineFailed as error:
            return held.result(None, str(error))
        if not self._beside:
            return held.result(self._row(answer), None)
        with self._work:
            self._answers.append((held, answer))
        return None

    def _complete(self, held: _Held, answer: Any) -> None:
        """Compute and write a long answer, within the same limit of memory as images."""
        cost = FREE
        if isinstance(answer, Deferred):
            cost = Cost(answer.computing.cost.memory + answer.writing.memory, 0.0)
        try:
            with self._decoding.within(cost):
                row = self._row(answer)
        except RequestError as error:
            self._finish(held.result(None, str(error)))
        else:
            self._finish(held.result(row, None))

    def _hold(self, held: _Held, size: int) -> None:
        self._bytes += size - held.bytes
        held.bytes = size

    def _left(self, held: _Held, error: str | None) -> None:
        """Finish an item that does not reach the engine."""
        with self._work:
            self._before_engine -= 1
            if not self._before_engine:
                self._work.notify()
        self._finish(held.result(None, error))

    def _finish(self, *results: tuple[_Held, Scored]) -> None:
        with self._finished:
            for held, scored in results:
                self._bytes -= held.bytes
                self._results[held.number] = scored
            self._make_room()
            if self._next in self._results:
                self._finished.notify()

    def _fail(self, error: BaseException) -> None:
        with self._finished:
            if self._error is None:
                self._error = error
        self._close()
