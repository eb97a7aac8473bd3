"""A model that is small and quick, and that answers otherwise for every image: one matrix."""

import io
import threading
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pthserve.engines.base import Images, Logits
from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec
from pthserve.loading.model import Model
from pthserve.planning.plan import Plan

SPEC = Spec(resize=40, crop=(32, 32))
LABELS = ("ant", "bee", "cat", "dog", "snöwl")


class Linear:
    """An engine that multiplies the normalised pixels with a matrix.

    gate: while it is not set, no forward pass ends.
    """

    name = "linear"
    precision = "fp32"
    threads = 1
    lanes = 1

    def __init__(self, spec: Spec, classes: int) -> None:
        size = int(np.prod(spec.tensor_shape))
        weights = np.random.default_rng(7).normal(0, size**-0.5, (size, classes))
        self.spec = spec
        self.gate = threading.Event()
        self.gate.set()
        self.weights = weights.astype(np.float32)

    def __call__(self, batch: Images) -> Logits:
        assert self.gate.wait(60)
        if batch.dtype == np.uint8:
            batch = normalise(cast("NDArray[np.uint8]", batch), self.spec)
        with np.errstate(all="ignore"):
            # Row by row: a matrix product's sums are of another order in another batch.
            return np.stack([image.ravel() @ self.weights for image in batch]).astype(np.float32)

    def close(self) -> None:
        pass


def linear(engine: Linear, name: str = "pets", version: str = "3") -> Model:
    return Model(
        forward=engine,
        labels=LABELS,
        spec=engine.spec,
        plan=Plan(engine="linear"),
        digest="0" * 64,
        name=name,
        version=version,
        architecture="linear",
        parameters=engine.weights.size,
    )


def noise(seed: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Pixels, uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
