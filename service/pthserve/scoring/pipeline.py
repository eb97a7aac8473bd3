"""Pipeline: many images through the decoders and the engine, with all CPUs busy and memory bounded.

Reading, decoding and forward passes overlap. Unlike the service, which answers an image as soon as it can,
the pipeline waits for full batches: nobody waits for a single answer, and full batches cost least per image.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Images as Batch
from pthserve.errors import EngineFailed, PthserveError, RequestError
from pthserve.images.cost import FREE, Cost
from pthserve.images.preprocess import Pending, pending
from pthserve.loading.model import Model
from pthserve.scoring.archives import Images
from pthserve.serving.decoders import Decoders, Job
from pthserve.tasks.base import Deferred, Selects, Size

HELD = 256 * 2**20
"""No further image is read while image files and preprocessed images have so many bytes in memory."""
BATCH, BATCH_BYTES = 16, 4 * 2**20
"""Images of a full batch, and the most bytes of its pixels: a pass needs some 40 times as many. Passes of 16
images on all lanes answer a fifth more than those of one image (EfficientNet-Lite0 at bf16 on two cores)."""
AHEAD = 4
"""Full batches that may wait for each lane. With 2, lanes waited for images 2 % of the time."""
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


@dataclass(slots=True, eq=False)
class _Ready:
    """A preprocessed image that waits for the engine."""

    held: _Held
    pixels: NDArray[Any]


def full_batch(model: Model) -> int:
    """Return how many images the pipeline collects for a pass.

    The plan's batch size is that of a service, which answers a lone image as soon as it can. Here, passes run
    at the same time on all lanes, and nobody waits.
    """
    if model.options.max_batch:
        return model.options.max_batch
    fitting = BATCH_BYTES // math.prod(model.spec.image_shape)
    return max(model.plan.max_batch, min(BATCH, fitting))


class Pipeline:
    """Scores items once, and returns the results in the same order. The threads end with the iterator.

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
        self._decode_memory = decode_memory
        self._cpus = model.options.cpus
        self._batch = full_batch(model)
        self._waiting = AHEAD * self._batch * model.forward.lanes
        self._most = 2 * self._waiting + 4 * self._cpus + readers
        self._beside = isinstance(model.task, Selects)
        lock = threading.Lock()
        self._room = threading.Condition(lock)
        self._filled = threading.Condition(lock)
        self._finished = threading.Condition(lock)
        self._feeding = threading.Lock()
        self._inside = self._bytes = self._before_engine = self._numbered = 0
        self._groups: dict[tuple[Any, ...], list[_Ready]] = {}
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
        self._decoders = Decoders(self._cpus, self._decode_memory)
        threads = [
            *(threading.Thread(target=self._read, args=(items,), daemon=True) for _ in range(self._readers)),
            *(threading.Thread(target=self._infer, daemon=True) for _ in range(self._model.forward.lanes)),
        ]
        for thread in threads:
            thread.start()
        try:
            while taken := self._taken():
                yield from taken
        finally:
            with self._room:
                self._closed = True
                for condition in (self._room, self._filled, self._finished):
                    condition.notify_all()
            self._decoders.close(_CLOSING)
            for thread in threads:
                thread.join(_CLOSING)

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
                self._filled.notify()
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
                self._hold(held, len(data))
                self._decode(held, data)
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
                for condition in (self._room, self._filled, self._finished):
                    condition.notify_all()
                return None

    def _decode(self, held: _Held, data: bytes) -> None:
        options = self._model.options
        opening = partial(
            pending, data, self._model.spec, decode=options.decode, max_pixels=options.max_pixels
        )
        self._decoders.submit(
            Job(None, opening, partial(self._decoded, held), math.inf, failed=partial(self._unreadable, held))
        )

    def _decoded(self, held: _Held, pixels: NDArray[Any], _: float, size: Size) -> None:
        held.size = size
        self._hold(held, pixels.nbytes)
        with self._filled:
            self._before_engine -= 1
            self._groups.setdefault((pixels.shape, pixels.dtype), []).append(_Ready(held, pixels))
            self._filled.notify()

    def _unreadable(self, held: _Held, error: Exception) -> None:
        if isinstance(error, MemoryError):
            self._fail(PthserveError("there is too little memory to decode an image; lower --decode-memory"))
            return
        if not isinstance(error, RequestError):
            _log.warning("%s: cannot be decoded", held.item.number, exc_info=error)
        self._left(held, str(error) if isinstance(error, RequestError) else repr(error))

    def _infer(self) -> None:
        """Run full batches, and the rest at the end."""
        try:
            while (batch := self._collected()) is not None:
                pixels = np.stack([one.pixels for one in batch])
                held = [one.held for one in batch]
                del batch
                logits = self._forward(pixels)
                self._finish(*(one for one in map(self._answered, held, logits) if one is not None))
        except BaseException as error:
            self._fail(error)

    def _forward(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        try:
            return np.asarray(self._model.forward(cast("Batch", pixels)), np.float32)
        except Exception as error:  # any error of the engine's library, including a lack of memory
            raise EngineFailed(
                f"the forward pass of {len(pixels)} images failed: {error or type(error).__name__}"
            ) from error

    def _collected(self) -> list[_Ready] | None:
        """Wait for a batch of one shape; None if the pipeline is closed."""
        with self._filled:
            while not self._closed:
                full = next((key for key, group in self._groups.items() if len(group) >= self._batch), None)
                if full is None and self._groups and self._nothing_to_wait_for():
                    full = next(iter(self._groups))  # the group that has waited longest
                if full is not None:
                    group = self._groups.pop(full)
                    if group[self._batch :]:
                        self._groups[full] = group[self._batch :]
                        self._filled.notify()
                    return group[: self._batch]
                self._filled.wait()
        return None

    def _nothing_to_wait_for(self) -> bool:
        """Whether no image can come until one of these leaves, or too many of different shapes wait."""
        no_room = self._inside > self._most - self._batch or self._bytes >= HELD  # see `_make_room`
        stuck = no_room and self._next not in self._results  # otherwise a result is taken next
        if not self._before_engine and (self._exhausted or stuck):
            return True
        return sum(map(len, self._groups.values())) >= self._waiting

    def _answered(self, held: _Held, row: NDArray[np.float32]) -> tuple[_Held, Scored] | None:
        """The result for an image, or None if it is still to be computed."""
        assert held.size is not None
        try:
            answer = self._model.answer(row, held.size)
        except EngineFailed as error:
            return held.result(None, str(error))
        if not self._beside:
            return held.result(self._row(answer), None)
        # Long answers are computed and written in the decoders' threads, within the same limit of memory.
        cost = FREE
        if isinstance(answer, Deferred):
            computing, writing = answer.computing.cost, answer.writing
            cost = Cost(computing.memory + writing.memory, computing.seconds + writing.seconds)
        self._decoders.submit(
            Job(
                None,
                lambda: Pending((1, 1), cost, partial(cast("Any", self._row), answer)),
                partial(self._computed, held),
                math.inf,
                "answer",
                failed=lambda error: self._unanswered(held, error),
            )
        )
        return None

    def _computed(self, held: _Held, row: Any, _: float, __: Size) -> None:
        self._finish(held.result(row, None))

    def _unanswered(self, held: _Held, error: Exception) -> None:
        if isinstance(error, RequestError):
            self._finish(held.result(None, str(error)))
        else:
            self._fail(error)

    def _hold(self, held: _Held, size: int) -> None:
        with self._room:
            self._bytes += size - held.bytes
            held.bytes = size

    def _left(self, held: _Held, error: str | None) -> None:
        """Finish an item that does not reach the engine."""
        with self._filled:
            self._before_engine -= 1
            if not self._before_engine:
                self._filled.notify()
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
            self._closed = True
            for condition in (self._room, self._filled, self._finished):
                condition.notify_all()
