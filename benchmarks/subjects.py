"""Subjects: what is measured, and how each is started."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.material import Material, Precision
from pthserve.images.preprocess import Decode
from pthserve.settings import Settings

PRECISIONS: tuple[Precision, ...] = ("fp32", "auto", "int8")
DECODES: tuple[Decode, ...] = ("exact", "fast")
OURS = tuple(f"{precision} {decode}" for precision, decode in product(PRECISIONS, DECODES))
UNPACKED = "auto exact, from the weights file"
PEERS = {"FastAPI + torch": "plain", "LitServe": "lit"}
"""Name to the module of `benchmarks.peers`."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A service; `argv` holds `{port}` where its port goes, and `ready` answers 200 once it can serve."""

    name: str
    argv: tuple[str, ...]
    ready: str


def settings(material: Material, precision: Precision) -> Settings:
    """What the service is started with, for a bare model."""
    return Settings(model=str(material.packs[precision]), precision=precision, cache_dir=material.cache)


def subjects(material: Material, precisions: Mapping[str, str]) -> Iterator[Subject]:
    """Ours in all variants, then from the weights file, then the peers.

    precisions: that each of ours computes with; what is served from the weights file computes as `auto` does.
    """
    for name in OURS:
        precision, decode = name.split()
        yield _ours(name, material, material.packs[precision], precision, "--decode", decode)  # type: ignore[index]
    yield _ours(UNPACKED, material, material.weights, precisions["auto"], "--tune-budget", "0")
    for name, module in PEERS.items():
        argv = (sys.executable, "-m", f"benchmarks.peers.{module}", str(material.weights), "{port}")
        yield Subject(name, argv, "/health")


def _ours(name: str, material: Material, model: Path, precision: str, *options: str) -> Subject:
    """`pthserve serve` of `model`."""
    argv = (sys.executable, "-m", "pthserve", "serve", str(model), "--port", "{port}")
    return Subject(
        name,
        (*argv, "--precision", precision, "--cache-dir", str(material.cache), *options),
        "/readyz",
    )
