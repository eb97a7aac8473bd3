"""Model: what is served. Everything between a file and its first forward pass is in this package."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from pthserve.engines.base import Engine
from pthserve.errors import PackError
from pthserve.images.spec import Spec
from pthserve.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class Golden:
    """A golden image: its file, the class it must be given, and (where known) with what probability.

    sha256: of the file, where a packed model says so; None where any content counts.
    """

    image: Path
    class_index: int
    probability: float | None = None
    sha256: str | None = field(default=None, compare=False)

    def read(self) -> bytes:
        """The file's bytes; raises OSError, and PackError where they are not those that were packed."""
        data = self.image.read_bytes()
        if self.sha256 is not None and hashlib.sha256(data).hexdigest() != self.sha256:
            raise PackError(f"{self.image}: was changed; copy the packed model again")
        return data


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Model:
    """A loaded model; each request holds the one it was admitted for.

    forward: uint8 (n, height, width, channels) or float32 (n, channels, height, width) to logits,
    float32 (n, classes).
    labels: one a class, in the order of the logits.
    digest: SHA-256 of the weights file, 64 hexadecimal digits.
    """

    forward: Engine
    labels: tuple[str, ...]
    spec: Spec
    plan: Plan
    digest: str
    name: str
    version: str
    architecture: str
    parameters: int
    golden: tuple[Golden, ...] = field(default=())

    @property
    def num_classes(self) -> int:
        """How many classes the model tells apart."""
        return len(self.labels)
