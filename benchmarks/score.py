"""`python -m benchmarks.score`: batch scoring beside the limit of this machine, as a ratio from one process.

The limit is what decoding and the forward passes of the same images take, one after the other, each on all
CPUs: no run that does both can be faster. Reading, Parquet files and Python are not part of it.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pthserve.cli import demo
from pthserve.images.preprocess import pending
from pthserve.loading.loader import Loader
from pthserve.loading.model import Model
from pthserve.scoring.request import Request
from pthserve.scoring.run import score
from pthserve.settings import Settings

WARM_UP = 64
"""Images that are scored before anything is measured."""


def photos(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """JPEG files of smooth noise, each another image."""
    random = np.random.default_rng(0)
    files = []
    for number in range(count):
        small = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        files.append(folder / f"{number:06}.jpg")
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(files[-1], quality=85)
    return files


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def decoded(model: Model, files: list[Path]) -> None:
    """Decode all files on all CPUs."""

    def decode(file: Path) -> None:
        options = model.options
        pending(file.read_bytes(), model.spec, decode=options.decode, max_pixels=options.max_pixels).pixels()

    with ThreadPoolExecutor(model.options.cpus) as pool:
        list(pool.map(decode, files))


def forwarded(model: Model, count: int) -> None:
    """Run forward passes of full batches for so many images, in as many threads as the engine has lanes."""
    most = model.options.max_batch or model.plan.max_batch
    shape = (most, *model.spec.image_shape)
    images: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    sizes = [min(most, count - at) for at in range(0, count, most)]
    with ThreadPoolExecutor(model.forward.lanes) as pool:
        list(pool.map(lambda size: model.forward(images[:size]), sizes))


@click.command()
@click.argument("name", metavar="MODEL", default=demo.NAME)
@click.option("--images", default=5000, show_default=True, type=click.IntRange(1))
@click.option("--size", default="320x240", show_default=True, help="width and height of the images")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--tune-budget", default=10.0, show_default=True, type=click.FloatRange(0))
def main(name: str, images: int, size: str, rounds: int, tune_budget: float) -> None:
    """Print, as JSON, images per second of a run and of the limit, and the median of their ratios."""
    width, height = map(int, size.split("x"))
    settings = demo.resolved(Settings(model=name, tune_budget=tune_budget))
    with (
        tempfile.TemporaryDirectory(prefix="pthserve-") as folder,
        Loader(settings.model, settings, settings.cache_size)() as model,
    ):
        source = Path(folder, "photos")
        source.mkdir()
        files = photos(source, images, width, height)
        warm = Request(tuple(map(str, files[:WARM_UP])), str(Path(folder, "warm-up")))
        score(model, warm, lambda *_: None)
        limits, runs = [], []
        for number in range(rounds):
            request = Request((str(source),), str(Path(folder, f"scores-{number}")))
            limits.append(
                images / (seconds(lambda: decoded(model, files)) + seconds(lambda: forwarded(model, images)))
            )
            runs.append(images / score(model, request, lambda *_: None).seconds)
        found = {
            "model": model.name,
            "engine": model.forward.name,
            "precision": model.forward.precision,
            "max_batch": model.options.max_batch or model.plan.max_batch,
            "images": images,
            "limit": round(statistics.median(limits), 1),
            "score": round(statistics.median(runs), 1),
            "ratio": round(
                statistics.median(run / limit for run, limit in zip(runs, limits, strict=True)), 3
            ),
        }
    click.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
