"""Subjects: what is measured, and how each is started."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.material import Material
from pthserve.settings import Settings

PRECISIONS = ("fp32", "auto", "int8")
DECODES = ("exact", "fast")
OURS = tuple(f"{precision} {decode}" for precision, decode in product(PRECISIONS, DECODES))
PEERS = {"FastAPI + torch": "plain", "LitServe": "lit"}
"""Name to the module of `benchmarks.peers`."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A service; `argv` holds `{port}` where its port goes, and `ready` answers 200 once it can serve."""

    name: str
    argv: tuple[str, ...]
    ready: str


def settings(material: Material, precision: str) -> Settings:
    """What the service is started with, for a bare model."""
    calibration = material.calibration if precision == "int8" else None
    return Settings(
        model=str(material.weights), precision=precision, calibration=calibration, cache_dir=material.cache
    )  # type: ignore[call-arg]


def subjects(material: Material) -> Iterator[Subject]:
    """Ours in all variants, then the peers."""
    for name in OURS:
        precision, decode = name.split()
        options = ["--precision", precision, "--decode", decode, "--cache-dir", str(material.cache)]
        if precision == "int8":
            options += ["--calibration", str(material.calibration)]
        yield ours(name, material.weights, *options)
    for name, module in PEERS.items():
        argv = (sys.executable, "-m", f"benchmarks.peers.{module}", str(material.weights), "{port}")
        yield Subject(name, argv, "/health")


def ours(name: str, model: Path, *options: str) -> Subject:
    """`pthserve serve` of `model`."""
    argv = (sys.executable, "-m", "pthserve", "serve", str(model), "--port", "{port}", *options)
    return Subject(name, argv, "/readyz")
