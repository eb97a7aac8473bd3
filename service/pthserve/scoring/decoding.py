"""Decoding: images and long answers, in any thread, within a common limit of memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from pthserve.errors import PthserveError
from pthserve.images.cost import Cost
from pthserve.images.preprocess import pending
from pthserve.loading.model import Model
from pthserve.tasks.base import Size


class Decoding:
    """Decodes and preprocesses images as a model needs it.

    Args:
        model: The model.
        memory: Maximum memory in bytes of all that is decoded and computed at the same time.
    """

    def __init__(self, model: Model, memory: int) -> None:
        self._model = model
        self._memory = self._free = memory
        self._closed = False
        self._released = threading.Condition()

    def __call__(self, data: bytes) -> tuple[NDArray[Any], Size]:
        """Return the pixels that the engine gets, and the size of the image as it is shown.

        Raises:
            RequestError: The image cannot be decoded, or needs more than the whole memory.
            PthserveError: There was too little memory.
        """
        options = self._model.options
        image = pending(data, self._model.spec, decode=options.decode, max_pixels=options.max_pixels)
        try:
            with self.within(image.cost):
                pixels = image.pixels()
        except MemoryError as error:
            raise PthserveError(
                "there is too little memory to decode an image; lower --decode-memory"
            ) from error
        return pixels, image.upright

    @contextmanager
    def within(self, cost: Cost) -> Iterator[None]:
        """Reserve the memory of `cost` during the block, once it is free; raises TooLarge if it never is."""
        cost.check(self._memory)
        with self._released:
            while self._free < cost.memory and not self._closed:
                self._released.wait()
            self._free -= cost.memory
        try:
            yield
        finally:
            with self._released:
                self._free += cost.memory
                self._released.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._released:
            self._closed = True
            self._released.notify_all()
