"""A real model, small enough for any test: tells red, green and blue squares apart."""

import io
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pthserve.certainty import Inferred, Origin
from pthserve.engines.base import Images, Logits
from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec
from pthserve.loading.model import Model
from pthserve.planning.plan import Plan

SPEC = Spec(resize=32, crop=(32, 32))
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class Squares:
    """Logits: ln 8 times how red, green and blue the image is; a pure colour gets a probability of 0.8.

    seconds: how long a pass takes for each image, beside its arithmetic.
    hook: called with the batch before the pass; it may wait, or raise.
    lanes: how many passes may run at once.
    """

    name = "squares"
    precision = "fp32"
    threads = 1

    def __init__(
        self, seconds: float = 0.0, hook: Callable[[Images], None] | None = None, lanes: int = 1
    ) -> None:
        self.seconds = seconds
        self.hook = hook
        self.lanes = lanes
        self.batches: list[int] = []
        self.closed = False

    def __call__(self, batch: Images) -> Logits:
        self.batches.append(len(batch))
        if self.hook is not None:
            self.hook(batch)
        if self.seconds:
            time.sleep(self.seconds * len(batch))
        images = normalise(cast("NDArray[np.uint8]", batch), SPEC) if batch.dtype == np.uint8 else batch
        colours = images.mean((2, 3)) * np.array(SPEC.std) + np.array(SPEC.mean)
        return (np.log(8) * colours).astype(np.float32)

    def close(self) -> None:
        self.closed = True


class Gate:
    """A hook that holds the engine until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, _: Images | None) -> None:
        self.entered.set()
        assert self.opened.wait(60), "nobody opened the gate"


def squares(engine: Squares | None = None, max_batch: int = 8, **fields: Any) -> Model:
    model = Model(
        forward=engine or Squares(),
        labels=("red", "green", "blue"),
        spec=SPEC,
        plan=Plan(engine="squares", max_batch=max_batch),
        digest="00" * 32,
        name="squares",
        version="1",
        architecture="squares",
        parameters=0,
        inferred=(Inferred("architecture", "squares", Origin.FILE, "architecture: squares"),),
    )
    return replace(model, **fields)


def pixels(colour: tuple[int, int, int], size: tuple[int, int] = (48, 40)) -> NDArray[np.uint8]:
    return np.full((*size, 3), colour, np.uint8)


def png(colour: tuple[int, int, int] = RED, size: tuple[int, int] = (48, 40)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(colour, size)).save(file, "PNG")
    return file.getvalue()


def answer(colour: tuple[int, int, int]) -> NDArray[np.float32]:
    """The probabilities that the model gives a square of `colour`."""
    exponents = np.exp(np.log(8) * np.array(colour) / 255)
    return (exponents / exponents.sum()).astype(np.float32)
