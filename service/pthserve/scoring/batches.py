"""Batches: images of the same shape, collected until there are enough for a forward pass."""

import math
from typing import Any, Generic, NamedTuple, TypeVar

from numpy.typing import NDArray

from pthserve.loading.model import Model

BATCH, BATCH_BYTES = 16, 4 * 2**20
"""Images of a full batch, and the most bytes of its pixels: a pass needs some 40 times as many. Passes of 16
images on all lanes answer a fifth more than those of one image (EfficientNet-Lite0 at bf16 on two cores)."""

T = TypeVar("T")


def full_batch(model: Model) -> int:
    """Return how many images are collected for a pass.

    The plan's batch size is that of a service, which answers a lone image as soon as it can. Here, passes run
    at the same time on all lanes, and nobody waits.
    """
    if model.options.max_batch:
        return model.options.max_batch
    fitting = BATCH_BYTES // math.prod(model.spec.image_shape)
    return max(model.plan.max_batch, min(BATCH, fitting))


class Ready(NamedTuple, Generic[T]):
    """A preprocessed image, and what it belongs to."""

    of: T
    pixels: NDArray[Any]


class Batches(Generic[T]):
    """Preprocessed images that wait for a forward pass, by shape. Its user has the lock.

    Args:
        full: Number of images of a full batch.
    """

    def __init__(self, full: int) -> None:
        self._full = full
        self._groups: dict[tuple[Any, ...], list[Ready[T]]] = {}

    def __len__(self) -> int:
        """The number of images."""
        return sum(map(len, self._groups.values()))

    def add(self, of: T, pixels: NDArray[Any]) -> None:
        """Add an image."""
        self._groups.setdefault((pixels.shape, pixels.dtype), []).append(Ready(of, pixels))

    def take(self, *, partial: bool) -> list[Ready[T]]:
        """Remove and return a full batch; if there is none, none, or the oldest images if `partial`."""
        shape = next((key for key, group in self._groups.items() if len(group) >= self._full), None)
        if shape is None and partial:
            shape = next(iter(self._groups), None)
        if shape is None:
            return []
        group = self._groups.pop(shape)
        if rest := group[self._full :]:
            self._groups[shape] = rest
        return group[: self._full]
