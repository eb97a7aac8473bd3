"""What a model card states about the task: its name, its parameters, and what its golden images tell."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

TaskName = Literal[
    "classification", "multilabel", "binary", "regression", "embedding", "detection", "segmentation"
]
"""The tasks, as a card, an option and `/info` call them."""

PARAMETERS: dict[str, tuple[TaskName, ...]] = {
    "threshold": ("multilabel", "binary", "detection"),
    "outputs": ("regression",),
    "normalize": ("embedding",),
}
"""The fields of a card that are a task's parameters, and the tasks; the first is the one that it tells, where
the model has not only one."""

KINDS: dict[str, TaskName] = {
    "class": "classification",
    "labels": "multilabel",
    "values": "regression",
    "vector": "embedding",
    "boxes": "detection",
    "class_map": "segmentation",
}
"""What a golden image states, and the task that it tells."""


class Hint(NamedTuple):
    """What a file tells about the task. reason: how, in words, such as "its head ends in a Sigmoid".

    A network without a head tells `embedding`, which is served only where the user asks for it.
    """

    task: TaskName
    reason: str


@dataclass(frozen=True, slots=True)
class NamedOutput:
    """An output of a regression. range: between which values it lies; differences are shares of its width."""

    name: str
    unit: str = ""
    range: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is known of it, as plain values."""
        values = asdict(self)
        if self.range is not None:
            values["range"] = list(self.range)
        return {key: value for key, value in values.items() if value}


@dataclass(frozen=True, slots=True)
class StatedTask:
    """What a card, or an option in its place, states about the task.

    name: None where neither names one. implied: the task that the card's parameters and golden images tell.
    """

    name: TaskName | None = None
    implied: TaskName | None = None
    threshold: float | None = None
    outputs: tuple[NamedOutput, ...] = ()
    normalize: bool = False
