"""A user's own architectures, small and quick; one of them does what no model should, where an image asks it.

The services under test import this module as `nets`.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

SIDE = 32
"""Of the images, in pixels."""


class Net(nn.Module):
    """One convolution, pooling and a linear layer.

    seconds: that a forward pass takes for each image beside its arithmetic, without the interpreter's lock.
    """

    def __init__(self, classes: int = 4, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.convolution = nn.Conv2d(3, 8, 3, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.head = nn.Linear(8 * 16, classes)

    def forward(self, images: Tensor) -> Tensor:
        if self.seconds:
            time.sleep(self.seconds * len(images))
        features: Tensor = self.pool(torch.relu(self.convolution(images)))
        logits: Tensor = self.head(features.flatten(1))
        return logits


def _raise() -> None:
    raise RuntimeError("a secret of the user's")


def _allocate() -> None:
    torch.empty(2**50)


def _recurse() -> None:
    _recurse()


def _hang() -> None:
    threading.Event().wait()


def _pause() -> None:
    time.sleep(3)


FAULTS: dict[str, Callable[[], object]] = {
    "raises": _raise,
    "finds no memory": _allocate,
    "recurses": _recurse,
    "pauses": _pause,
    "hangs": _hang,
    "ends its thread": sys.exit,
    "kills its process": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def colour(fault: str) -> tuple[int, int, int]:
    """What colour the image's first pixel must be to have `fault`."""
    return 255, 0, 1 + list(FAULTS).index(fault)


class Faulty(Net):
    """Has a fault where the first pixel of an image says which. It expects values of 0 to 1."""

    def forward(self, images: Tensor) -> Tensor:
        for red, green, blue in (255 * images[:, :, 0, 0]).round().int().tolist():
            if (red, green) == (255, 0) and 1 <= blue <= len(FAULTS):
                list(FAULTS.values())[blue - 1]()
        return super().forward(images)
