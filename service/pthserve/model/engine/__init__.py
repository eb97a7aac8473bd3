"""Engine: what runs the forward pass. Its callers know this protocol and no engine by name."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8] | NDArray[np.float32]
"""A batch: uint8 (n, height, width, channels), still to be normalised; or float32 (n, channels, height,
width), normalised by the client."""

Logits = NDArray[np.float32]
"""float32 (n, classes)."""


class Engine(Protocol):
    """A callable on a batch of images.

    One thread at a time calls it. Normalisation is part of it, so that a request copies bytes and not floats.
    """

    name: str
    precision: str
    threads: int

    def __call__(self, batch: Images) -> Logits:
        """Logits of `batch`; raises whatever the library raises."""
        ...

    def close(self) -> None:
        """Give memory back; the engine is not called again."""
        ...
