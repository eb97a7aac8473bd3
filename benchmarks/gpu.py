"""`python -m benchmarks.gpu`: this service on a GPU beside its peers and beside the limit, as ratios.

The limit is the slower of two: decoding on all CPUs, and forward passes of the largest measured batch on the
GPU. Weights are random, from a fixed seed: what a model has learnt does not change how long it takes.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Literal

import click
import torch

from benchmarks import bare
from benchmarks.material import PHOTOS, SIZES
from benchmarks.measure import QUICK, Durations, loaded
from benchmarks.models import jpegs, random_weights
from benchmarks.process import Process, scratch
from benchmarks.run import throughput
from benchmarks.subjects import PEERS, Subject, ours, peer, started
from pthserve.cpus import cpu_quota
from pthserve.engines.torch_engine import GRAPH_SIZES, precisions
from pthserve.settings import Settings
from pthserve.text import counted

MODELS = ("resnet18", "resnet50")
CLIENTS = (1, 8, 64)
DURATIONS = Durations(load=3.0, warm_up=1.0, bare=1.0, repeats=2)


@dataclass(slots=True)
class Found:
    """What was measured of one model.

    forward: seconds for an image, by precision and batch. decode: seconds for a photo on one core. starts:
    seconds until ready. rates: responses per second by clients; one number a repeat.
    """

    model: str
    decode: float = 0.0
    forward: dict[str, dict[int, float]] = field(default_factory=dict)
    starts: dict[str, float] = field(default_factory=dict)
    rates: dict[str, dict[int, list[float]]] = field(default_factory=dict)

    def limit(self, precision: str) -> float:
        """Images per second that decoding and the passes allow, whichever is slower."""
        return min(cpu_quota() / self.decode, 1 / min(self.forward[precision].values()))

    def rate(self, subject: str, clients: int) -> float:
        """The median of the repeats."""
        return median(self.rates[subject][clients])


def subjects(model: str, weights: Path, cache: Path, device: str, chosen: Sequence[str]) -> Iterator[Subject]:
    """Ours at the chosen precisions, and the peers, which compute float32 with TF32 in convolutions."""
    for precision in chosen:
        options = ("--engine", "torch", "--device", device, "--precision", precision)
        yield ours(precision, weights, cache, *options)
    for name in PEERS:
        yield peer(name, name, model, weights)


def measured(
    model: str, folder: Path, device: Literal["cpu", "cuda"], chosen: Sequence[str], durations: Durations
) -> Found:
    """Measure one model at the chosen precisions, with what it needs in `folder`."""
    found = Found(model)
    weights, cache = random_weights(model, folder / f"{model}.pth"), folder / "cache"
    photos = list(jpegs(PHOTOS, folder, SIZES["small"]))
    for precision in chosen:
        settings = Settings(
            model=str(weights), engine="torch", device=device, precision=precision, cache_dir=cache
        )
        with bare.worker(settings) as worker:
            found.forward[precision] = {
                batch: worker.submit(bare.forward, batch, durations.bare).result().seconds
                for batch in GRAPH_SIZES
            }
            if not found.decode:
                found.decode = worker.submit(bare.decode, photos, "exact", durations.bare).result().seconds
    with ExitStack() as stack:
        services: dict[str, tuple[Process, int]] = {}
        for subject in subjects(model, weights, cache, device, chosen):
            process, port, found.starts[subject.name] = started(subject, folder, stack)
            found.rates[subject.name] = {clients: [] for clients in CLIENTS}
            process.sleep()
            services[subject.name] = process, port
        for _ in range(durations.repeats):
            for name, (process, port) in services.items():
                for clients in CLIENTS:
                    sample = loaded(process, port, photos, clients, throughput, durations)
                    found.rates[name][clients].append(sample.value)
    return found


def rows(found: Found) -> Iterator[str]:
    """The lines of a table."""
    peers = [name for name in found.rates if name in PEERS]
    for name in found.rates:
        rates = [found.rate(name, clients) for clients in CLIENTS]
        best = max(found.rate(peer, CLIENTS[-1]) for peer in peers)
        forward = found.forward.get(name)
        of_limit = f"{rates[-1] / found.limit(name):.2f}" if forward else ""
        passes = [f"{1 / forward[batch]:,.0f}" if forward else "" for batch in (1, GRAPH_SIZES[-1])]
        cells = [found.model, name, *passes, f"{1000 / rates[0]:.1f}"]
        yield (
            "| "
            + " | ".join([*cells, *(f"{rate:,.0f}" for rate in rates), f"{rates[-1] / best:.2f}", of_limit])
            + " |"
        )


@click.command()
@click.option("--quick", is_flag=True, help="measure so shortly that the numbers mean nothing")
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), default=MODELS)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
@click.option("--precision", "chosen", multiple=True, help="default: all that the GPU computes")
@click.option("--repeats", default=DURATIONS.repeats, help="of each load")
@click.option(
    "--json", "kept", type=click.Path(dir_okay=False, path_type=Path), help="write all numbers here"
)
def main(
    quick: bool,
    models: tuple[str, ...],
    device: Literal["cpu", "cuda"],
    chosen: tuple[str, ...],
    repeats: int,
    kept: Path | None,
) -> None:
    """Measure on the GPU of this machine, and print a table."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("no CUDA device found; --device cpu measures PyTorch on the CPU instead")
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    click.echo(f"{name}, {cpu_quota()} CPUs, torch {torch.__version__}\n")
    numbers = []
    for model in models:
        with scratch() as folder:
            durations = QUICK if quick else replace(DURATIONS, repeats=repeats)
            found = measured(model, folder, device, chosen or precisions(device), durations)
        numbers.append(found)
        click.echo(f"decoding on all CPUs: {cpu_quota() / found.decode:,.0f} photos per second")
        passes = [f"forward, {GRAPH_SIZES[0]}", f"forward, {GRAPH_SIZES[-1]}"]
        loads = [counted(clients, "client") for clients in CLIENTS]
        head = ["model", "service", *passes, "1 client, ms", *loads, "to the best peer", "of the limit"]
        click.echo("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        click.echo("\n".join(rows(found)) + "\n")
    if kept:
        kept.write_text(json.dumps([asdict(found) for found in numbers], indent=1) + "\n")


if __name__ == "__main__":
    main()
