"""Bare: what the parts of a request cost by themselves, in a process that does nothing else."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from pthserve.images.preprocess import Decode, crop
from pthserve.loading.load import load
from pthserve.loading.model import Model
from pthserve.planning.plan import Plan
from pthserve.settings import Settings

BATCHES = (1, 8)
"""Of the forward pass."""

_loaded: list[Model] = []


@dataclass(frozen=True, slots=True)
class Timed:
    """What one image took, in seconds, and the cores that were in use meanwhile."""

    seconds: float
    cores: float


def worker(settings: Settings) -> ProcessPoolExecutor:
    """A process with the model of `settings`, in which the functions below are to be called."""
    return ProcessPoolExecutor(1, get_context("spawn"), _load, (settings,))


def plan() -> Plan:
    """What the model runs with."""
    return _loaded[0].plan


def tensor_shape() -> tuple[int, ...]:
    """Of one normalised image."""
    return _loaded[0].spec.tensor_shape


def forward(batch: int, seconds: float) -> Timed:
    """What an image costs in a forward pass of `batch`."""
    model = _loaded[0]
    images = np.random.default_rng(0).integers(0, 256, (batch, *model.spec.image_shape), np.uint8)
    return _each(lambda: model.forward(images), seconds, batch)


def decode(photos: Sequence[Path], how: Decode, seconds: float) -> Timed:
    """What one core takes to make pixels of one of `photos`."""
    model = _loaded[0]
    files = [photo.read_bytes() for photo in photos]

    def all_of_them() -> None:
        for data in files:
            crop(data, model.spec, decode=how, max_pixels=2**30)

    return _each(all_of_them, seconds, len(files))


def _load(settings: Settings) -> None:
    _loaded.append(load(settings.model, settings))


def _each(call: Callable[[], object], seconds: float, images: int) -> Timed:
    """Call `call`, which works on so many `images`, over and over for `seconds`."""
    call()
    calls, began, cpu = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - began) < seconds or not calls:
        call()
        calls += 1
    return Timed(elapsed / calls / images, (time.process_time() - cpu) / elapsed)
