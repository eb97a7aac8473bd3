"""`python -m benchmarks.score`: batch scoring beside the limit of this machine, as a ratio from one process.

The limit is what decoding and the forward passes of the same images take, one after the other, each on all
CPUs: no run that does both can be faster. Reading, Parquet files and Python are not part of it. It is
measured on SAMPLE of the images before and after each run.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from pthserve.cli import demo
from pthserve.engines.base import undivided
from pthserve.images.preprocess import pending
from pthserve.loading.loader import Loader
from pthserve.loading.model import Model
from pthserve.scoring.batches import full_batch
from pthserve.scoring.request import Request
from pthserve.scoring.run import score
from pthserve.settings import Settings

WARM_UP = 64
"""Images that are scored before anything is measured."""
SAMPLE = 5000
"""Number of images, spread over all of them, from which the limit is measured."""
SETTLED = 0.1
"""Share of a run after which its memory is compared with that at the end."""


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
    most = full_batch(model)
    shape = (most, *model.spec.image_shape)
    images: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    sizes = [min(most, count - at) for at in range(0, count, most)]
    run = undivided(model.forward)
    with ThreadPoolExecutor(model.forward.lanes) as pool:
        list(pool.map(lambda size: run(images[:size]), sizes))


class Memory:
    """The resident memory of this process during a run, without pages of files, in MiB."""

    def __init__(self, images: int) -> None:
        self._images = images
        self._process = psutil.Process()
        self.settled = self.most = 0.0

    def __call__(self, done: int, _: float | None, __: int) -> None:
        """Look; to be called with the progress of the run."""
        found = self._process.memory_info()
        now = (found.rss - found.shared) / 2**20
        if done <= SETTLED * self._images:
            self.settled = max(self.settled, now)
        self.most = max(self.most, now)


@click.command()
@click.argument("name", metavar="MODEL", default=demo.NAME)
@click.option("--images", default=5000, show_default=True, type=click.IntRange(1))
@click.option("--size", default="320x240", show_default=True, help="width and height of the images")
@click.option(
    "--photos",
    "given",
    type=click.Path(file_okay=False, path_type=Path),
    help="folder of the images, which are made there if it does not exist; default: a temporary one",
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--tune-budget", default=10.0, show_default=True, type=click.FloatRange(0))
def main(name: str, images: int, size: str, given: Path | None, rounds: int, tune_budget: float) -> None:
    """Print, as JSON, images per second of a run and of the limit, and the median of their ratios."""
    width, height = map(int, size.split("x"))
    settings = demo.resolved(Settings(model=name, tune_budget=tune_budget))
    with (
        tempfile.TemporaryDirectory(prefix="pthserve-") as folder,
        Loader(settings.model, settings, settings.cache_size)() as model,
    ):
        source = given or Path(folder, "photos")
        if not source.exists():
            source.mkdir()
            photos(source, images, width, height)
        files = sorted(source.glob("*.jpg"))
        if len(files) != images:
            raise click.ClickException(f"{source} has {len(files)} images and not {images}")
        sample = files[:: max(1, images // SAMPLE)]

        def limit() -> float:
            """Images per second."""
            decoding, passes = (
                seconds(lambda: decoded(model, sample)),
                seconds(lambda: forwarded(model, len(sample))),
            )
            return len(sample) / (decoding + passes)

        warm = Request(tuple(map(str, files[:WARM_UP])), str(Path(folder, "warm-up")))
        score(model, warm, lambda *_: None)
        runs, memory = [], Memory(images)
        limits = [limit()]
        for number in range(rounds):
            request = Request((str(source),), str(Path(folder, f"scores-{number}")))
            runs.append(images / score(model, request, memory).seconds)
            limits.append(limit())
        ratios = [run / statistics.mean(around) for run, around in zip(runs, pairwise(limits), strict=True)]
        found = {
            "model": model.name,
            "engine": model.forward.name,
            "precision": model.forward.precision,
            "batch": full_batch(model),
            "images": images,
            "limits": [round(one, 1) for one in limits],
            "scores": [round(one, 1) for one in runs],
            "ratio": round(statistics.median(ratios), 3),
            "memory_mib": {"settled": round(memory.settled), "most": round(memory.most)},
        }
    click.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
