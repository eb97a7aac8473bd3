"""Engine: the protocol of what runs the forward pass. Callers use no engine by name."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8] | NDArray[np.float32]
"""A batch: uint8 (n, height, width, channels), still to be normalised; or float32 (n, channels, height,
width), normalised by the client."""

Logits = NDArray[np.float32]
"""float32 (n, classes)."""


class Explanation(NamedTuple):
    """Where in an image the evidence for a class is.

    Attributes:
        method: The name of the method.
        map: float32 (rows, columns), spread evenly over the image; higher is more evidence.
    """

    method: str
    map: NDArray[np.float32]


class Engine(Protocol):
    """A callable on a batch of images.

    Normalisation is part of it, so that a request copies bytes and not floats.

    Attributes:
        threads: Number of CPU threads, which all its passes share.
        lanes: Number of threads that may call it at the same time.
    """

    name: str
    precision: str
    threads: int
    lanes: int

    def __call__(self, batch: Images) -> Logits:
        """Return the logits of `batch`; raises what the library raises."""
        ...

    def close(self) -> None:
        """Free its memory; the engine is not called again."""
        ...


@runtime_checkable
class Explains(Protocol):
    """An engine that can explain a class by the inside of its model."""

    def explain(self, image: NDArray[np.uint8], class_index: int) -> Explanation | None:
        """Return where in `image`, uint8 (height, width, channels), the evidence for a class is.

        None if the model has no suitable feature map. Any thread may call it, at any time.
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
class Divides(Protocol):
    """An engine that divides a batch among its lanes while nobody else calls it."""

    def on_one_lane(self, batch: Images) -> Logits:
        """Return the logits of `batch`, not divided: for callers that keep all lanes busy themselves."""
        ...


def undivided(engine: Engine) -> Callable[[Images], Logits]:
    """Return what runs a batch on one lane of `engine`; see `Divides`."""
    return engine.on_one_lane if isinstance(engine, Divides) else engine


@runtime_checkable
class Completes(Protocol):
    """An engine that can be made without a part that it works without, to save memory beside another one."""

    def complete(self) -> None:
        """Add that part, if it was left out; the engine stays in use.

        Raises:
            EngineError: the library cannot make it.
        """
        ...


@runtime_checkable
class Settles(Protocol):
    """An engine that needs some memory only until it is warm."""

    def settling(self) -> AbstractContextManager[None]:
        """Free that memory during the block, in which the engine is warmed up, and at its end."""
        ...
