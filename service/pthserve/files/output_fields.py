"""Output fields: the field `outputs` of `model.yaml`, which describes the outputs of a model."""

from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from pthserve.files import stated_task
from pthserve.files.card_values import MAX_STATED, Finite, Section, Share, Word
from pthserve.files.stated_task import OBJECTS, BoxFormat, Layout, ScoreActivation, Units

MAX_OBJECTS = 4096
"""Maximum of `objects`."""


class OutputFields(Section):
    """An output of a regression."""

    name: Word = Field(description="the name of the value")
    unit: Word | None = Field(None, description="its unit, such as `years`")
    range: Annotated[tuple[Finite, Finite], Field()] | None = Field(
        None,
        description="minimum and maximum; differences are measured as shares of the range; default: "
        "of the largest known value",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError("`range` must be the minimum and the maximum, in this order")
        return self


class GraphOutputs(Section):
    """The outputs of an exported graph of a detector or segmenter."""

    tensor: Word | None = Field(
        None,
        description="detection with `layout`: the output with boxes and scores; segmentation: the output "
        "with the scores of each pixel; may be left out if the graph has only one",
    )
    layout: Layout | None = Field(
        None,
        description="what `tensor` holds: `yolov5` (n, boxes, 5 + classes), with objectness; `yolov8` "
        "(n, 4 + classes, boxes); `rows` (n, objects, 6), each with its box, score and class",
    )
    boxes: Word | None = Field(
        None, description="or: the output with the boxes, (n, objects, 4); without n for one image"
    )
    scores: Word | None = Field(
        None, description="the output with the scores, (n, objects), or with a column for each class"
    )
    labels: Word | None = Field(
        None, description="the output with the class indices, (n, objects), if `scores` has no columns"
    )
    format: BoxFormat = Field(
        "xyxy",
        description="`xyxy`: left, top, right, bottom; `xywh`: left, top, width, height; `cxcywh`: centre, "
        "width, height, as always in `yolov5` and `yolov8`",
    )
    units: Units = Field(
        "pixels",
        description="`pixels` of the image that the model gets, or `shares` of its width and height, 0 to 1",
    )
    activation: ScoreActivation = Field(
        "none", description="`sigmoid`: the scores are logits, to which it is applied"
    )
    first_label: Annotated[int, Field(ge=0, le=1, strict=True)] = Field(
        0, description="`1`: class index 0 is the background, as in torchvision, and `labels` start at 1"
    )
    overlap: Share | None = Field(
        None,
        description="of two boxes of a class with a larger intersection over union, only the one with the "
        "better score is answered; 1: all are; default: 0.45 for `yolov5`, 0.7 for `yolov8`, 1 for `rows` "
        "and with `labels`",
    )
    objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS, strict=True)] = Field(
        OBJECTS, description="maximum number of objects in an image"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.layout is not None and (self.boxes or self.scores or self.labels):
            raise ValueError("state either `layout`, or `boxes` and `scores`")
        if self.boxes is not None and self.tensor is not None:
            raise ValueError("`tensor` is for one output with everything; state either it or `boxes`")
        if (self.boxes is None) != (self.scores is None) or (self.labels and not self.boxes):
            raise ValueError("state both `boxes` and `scores`, and `labels` if the graph has them")
        if self.layout in ("yolov5", "yolov8") and "format" in self.model_fields_set:
            raise ValueError(f"`format` is always `cxcywh` for `layout: {self.layout}`; leave it out")
        return self

    @property
    def of_boxes(self) -> bool:
        """Whether the fields are those of a detector."""
        return self.boxes is not None or self.layout is not None

    def stated(self) -> stated_task.GraphOutputs:
        """Return the same as plain values."""
        return stated_task.GraphOutputs(**self.model_dump())


def _kind(value: Any) -> str:
    return MAPPING if isinstance(value, dict | GraphOutputs) else LIST


LIST, MAPPING = "a list", "a mapping"
"""What pydantic calls the two in the place of an error."""
Outputs = Annotated[
    Annotated[tuple[OutputFields, ...], Field(min_length=1, max_length=MAX_STATED), Tag(LIST)]
    | Annotated[GraphOutputs, Tag(MAPPING)],
    Discriminator(_kind),
]
"""The values of a regression, or the outputs of a graph."""
