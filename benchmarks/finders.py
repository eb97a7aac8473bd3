"""Finders: a detector and a segmentation model, and the same models in a plain FastAPI service, as ratios.

`python -m benchmarks.finders` measures; nothing is written or left behind. Weights are random, from a fixed
seed: in both services the detector finds nothing with a score of 0.05 or more, but boxes are proposed, sorted
and suppressed as with other weights.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import click

from benchmarks.material import PHOTOS, SIZES
from benchmarks.measure import QUICK, Durations, loaded, quietest
from benchmarks.models import jpegs, pack, random_weights
from benchmarks.process import Process, scratch
from benchmarks.run import throughput
from benchmarks.subjects import Subject, ours, started

MODELS = ("fasterrcnn_mobilenet_v3_large_fpn", "lraspp_mobilenet_v3_large")
CLIENTS = 8
DURATIONS = Durations(load=10.0, warm_up=2.0, repeats=3)
PEER = "FastAPI + torch"


def subjects(model: str, folder: Path) -> Iterator[Subject]:
    """Ours at fp32 and as `auto` chooses, and the peer; all of the same weights."""
    weights = random_weights(model, folder / f"{model}.pth")
    packed, cache = folder / model, folder / "cache"
    pack(weights, packed, "--architecture", model, "--precision", "fp32")
    for precision in ("fp32", "auto"):
        yield ours(precision, packed, cache, "--precision", precision)
    peer = (sys.executable, "-m", "benchmarks.peers.finder", model, str(weights), "{port}")
    yield Subject(PEER, peer, "/health")


def rates(model: str, folder: Path, durations: Durations) -> dict[str, list[float]]:
    """Answers a second of each subject, one number a repeat, to CLIENTS clients."""
    photos = list(jpegs(PHOTOS, folder, SIZES["small"]))
    with ExitStack() as stack:
        services: dict[str, tuple[Process, int]] = {}
        for subject in subjects(model, folder):
            process, port, _ = started(subject, folder, stack)
            process.sleep()
            services[subject.name] = process, port
        found: dict[str, list[float]] = {name: [] for name in services}
        for _ in range(durations.repeats):
            for name, (process, port) in services.items():
                sample = quietest(
                    lambda process=process, port=port: loaded(  # type: ignore[misc]
                        process, port, photos, CLIENTS, throughput, durations
                    ),
                    durations.tries,
                )
                found[name].append(sample.value)
    return found


@click.command()
@click.option("--quick", is_flag=True, help="measure so shortly that the numbers mean nothing")
@click.option("--model", "chosen", multiple=True, type=click.Choice(MODELS), default=MODELS)
def main(quick: bool, chosen: tuple[str, ...]) -> None:
    """Measure the throughput of this service and of its peer, and print it as a table."""
    click.echo(f"| model | precision | {PEER}, images per second | pthserve | ratio |")
    click.echo("|---|---|---|---|---|")
    for model in chosen:
        with scratch() as folder:
            found = rates(model, folder, QUICK if quick else DURATIONS)
        peer = found.pop(PEER)
        for precision, rated in found.items():
            ratio = median(one / other for one, other in zip(rated, peer, strict=True))
            click.echo(f"| {model} | {precision} | {median(peer):.1f} | {median(rated):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
