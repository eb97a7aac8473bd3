"""Engine: what runs the forward pass. Its callers know this protocol and no engine by name."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8] | NDArray[np.float32]
"""A batch: uint8 (n, height, width, channels), still to be normalised; or float32 (n, channels, height,
width), normalised by the client."""

Logits = NDArray[np.float32]
"""float32 (n, classes)."""


class Explanation(NamedTuple):
    """Where in an image what spoke for a class is.

    method: by which that was found, in words.
    map: float32 (rows, columns), spread evenly over the image; the larger, the more it speaks for the class.
    """

    method: str
    map: NDArray[np.float32]


class Engine(Protocol):
    """A callable on a batch of images.

    threads: of the CPU's, which its passes share. lanes: how many threads may call it at once.
    Normalisation is part of it, so that a request copies bytes and not floats.
    """

    name: str
    precision: str
    threads: int
    lanes: int

    def __call__(self, batch: Images) -> Logits:
        """Logits of `batch`; raises whatever the library raises."""
        ...

    def close(self) -> None:
        """Give memory back; the engine is not called again."""
        ...


@runtime_checkable
class Explains(Protocol):
    """What an engine may have beside: a look at the inside of its model."""

    def explain(self, image: NDArray[np.uint8], class_index: int) -> Explanation | None:
        """What in `image`, uint8 (height, width, channels), speaks for a class, or None.

        None: the model has no feature map that says. Any thread may ask, also while another calls the engine.
        """
        ...


@runtime_checkable
class Resizable(Protocol):
    """What an engine may have beside: another one of the same model, on another number of threads."""

    def with_threads(self, threads: int) -> Engine:
        """Return a new engine on so many of the CPU's threads; this one goes on until it is closed.

        Raises:
            EngineError: the library cannot make it.
        """
        ...


@runtime_checkable
class Settles(Protocol):
    """What an engine may have beside: memory that it needs no more once it is warm."""

    def settle(self) -> None:
        """Give that memory back; the engine is called further on."""
        ...
