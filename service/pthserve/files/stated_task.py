"""Stated task: what a model card states about the task, directly or by its parameters and golden images."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

TaskName = Literal[
    "classification", "multilabel", "binary", "regression", "embedding", "detection", "segmentation"
]
"""The names of the tasks in a card, an option and `/info`."""

Layout = Literal["yolov5", "yolov8", "rows"]
"""How one output holds boxes and scores: as YOLOv5 or YOLOv8 exports them, or a row for each object."""
BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
Units = Literal["pixels", "shares"]
ScoreActivation = Literal["none", "sigmoid"]
OBJECTS = 300
"""Maximum number of objects in an image, unless the card states another; Ultralytics' `max_det`."""

PARAMETERS: dict[str, tuple[TaskName, ...]] = {
    "threshold": ("multilabel", "binary", "detection"),
    "outputs": ("regression",),
    "normalize": ("embedding",),
}
"""The fields of a card that are parameters of a task, with the tasks that have them. The field implies the
first of these if the card states no task."""

KINDS: dict[str, TaskName] = {
    "class": "classification",
    "labels": "multilabel",
    "values": "regression",
    "vector": "embedding",
    "boxes": "detection",
    "class_map": "segmentation",
}
"""The task that a golden image implies, by the kind of its answer."""


class Hint(NamedTuple):
    """Evidence in a weights file about the task.

    A network without a head implies `embedding`, which is served only if the user states it.

    Attributes:
        reason: The evidence in words, such as "its head ends in a Sigmoid".
    """

    task: TaskName
    reason: str


@dataclass(frozen=True, slots=True)
class NamedOutput:
    """An output of a regression.

    Attributes:
        range: Minimum and maximum of its values; differences are measured as shares of the range.
    """

    name: str
    unit: str = ""
    range: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, as plain values."""
        values = asdict(self)
        if self.range is not None:
            values["range"] = list(self.range)
        return {key: value for key, value in values.items() if value}


@dataclass(frozen=True, slots=True)
class GraphOutputs:
    """What the outputs of an exported graph of a detector or segmenter are; see `output_fields`."""

    tensor: str | None = None
    layout: Layout | None = None
    boxes: str | None = None
    scores: str | None = None
    labels: str | None = None
    format: BoxFormat = "xyxy"
    units: Units = "pixels"
    activation: ScoreActivation = "none"
    first_label: int = 0
    overlap: float | None = None
    objects: int = OBJECTS

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as plain values."""
        defaults = asdict(GraphOutputs())
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


@dataclass(frozen=True, slots=True)
class StatedTask:
    """What a card, or an option that overrides it, states about the task.

    Attributes:
        name: The name of the task; None if it is not stated.
        implied: The task that the card's parameters and golden images imply.
    """

    name: TaskName | None = None
    implied: TaskName | None = None
    threshold: float | None = None
    outputs: tuple[NamedOutput, ...] = ()
    normalize: bool = False
    graph: GraphOutputs | None = None

    def outputs_fields(self) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the field `outputs` of the card, as plain values."""
        return self.graph.to_dict() if self.graph else [output.to_dict() for output in self.outputs]
