"""Subjects: what is measured, and how each is started."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.material import Material
from benchmarks.models import DEMO, PRECISIONS, Packed, Precision
from benchmarks.process import Process, free_port
from pthserve.images.preprocess import Decode
from pthserve.settings import Settings

DECODES: tuple[Decode, ...] = ("exact", "fast")
OURS = tuple(f"{precision} {decode}" for precision, decode in product(PRECISIONS, DECODES))
UNPACKED = "auto exact, from the weights file"
PEERS = {"FastAPI + torch": "plain", "LitServe": "lit"}
"""Name to the module of `benchmarks.peers`."""
PEERS_OF_DEMO = tuple(f"{peer}, {DEMO}" for peer in PEERS)


@dataclass(frozen=True, slots=True)
class Subject:
    """A service; `argv` holds `{port}` where its port goes, and `ready` answers 200 once it can serve."""

    name: str
    argv: tuple[str, ...]
    ready: str


def settings(packed: Packed, precision: Precision, cache: Path) -> Settings:
    """What the service is started with, for a bare model."""
    return Settings(model=str(packed.packs[precision]), precision=precision, cache_dir=cache)


def subjects(material: Material, precisions: Mapping[str, str]) -> Iterator[Subject]:
    """Ours in all variants, from the weights file, the peers, then the other models; none that was refused.

    precisions: that each of ours computes with; what is served from the weights file computes as `auto` does.
    """
    resnet18, cache = material.resnet18, material.cache
    for precision, decode in product(PRECISIONS, DECODES):
        if precision in resnet18.packs:
            yield ours(
                *(f"{precision} {decode}", resnet18.packs[precision], cache),
                *("--precision", precision, "--decode", decode),
            )
    yield ours(
        *(UNPACKED, resnet18.weights, cache),
        *("--precision", precisions["auto"], "--tune-budget", "0"),
    )
    for name in PEERS:
        yield peer(name, name, "resnet18", resnet18.weights)
    for model, packed in material.others.items():
        for precision, pack in packed.packs.items():
            yield ours(f"{model} {precision}", pack, cache, "--precision", precision)
    for name, named in zip(PEERS, PEERS_OF_DEMO, strict=True):
        yield peer(named, name, "efficientnet-lite0", material.others[DEMO].weights)


def ours(name: str, model: Path, cache: Path, *options: str) -> Subject:
    """`pthserve serve` of `model`."""
    argv = (sys.executable, "-m", "pthserve", "serve", str(model), "--port", "{port}")
    # The peers have no deadline: on a slow machine, 64 clients may wait for longer than ours by default.
    return Subject(name, (*argv, "--cache-dir", str(cache), "--deadline", "60", *options), "/readyz")


def peer(name: str, peer: str, architecture: str, weights: Path) -> Subject:
    """A peer, with a model of this architecture."""
    argv = (sys.executable, "-m", f"benchmarks.peers.{PEERS[peer]}", architecture, str(weights), "{port}")
    return Subject(name, argv, "/health")


def started(subject: Subject, folder: Path, stack: ExitStack) -> tuple[Process, int, float]:
    """Start `subject` on a free port until `stack` is closed; its log is in `folder`.

    Returns its process, its port, and the seconds until it was ready.
    """
    port = free_port()
    argv = [word.format(port=port) for word in subject.argv]
    process = stack.enter_context(Process(subject.name, argv, folder / f"{subject.name}.log"))
    return process, port, process.ready(f"http://127.0.0.1:{port}{subject.ready}")
