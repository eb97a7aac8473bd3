"""Model: what is served. Everything between a file and its first forward pass is in this package."""

from dataclasses import dataclass, field

from pthserve.engines.base import Engine
from pthserve.files.golden import Golden
from pthserve.images.spec import Spec
from pthserve.planning.plan import Plan
from pthserve.tasks.base import Task
from pthserve.tasks.classification import CLASSIFICATION


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
    task: Task = CLASSIFICATION

    @property
    def num_classes(self) -> int:
        """How many classes the model tells apart."""
        return len(self.labels)
