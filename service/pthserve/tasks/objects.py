"""Objects: what a detector finds in one image, and the row of numbers that it is read from."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pthserve.errors import EngineFailed
from pthserve.images.spec import Spec
from pthserve.tasks.base import Drawn, Size
from pthserve.tasks.drawing import Shape, colour, draw
from pthserve.tasks.masks import Mask, Runs, pasted
from pthserve.tasks.suppression import kept

NAME = "detection"
"""Of the task."""

_BOX, _SCORE, _CLASS, _REST = slice(0, 4), 4, 5, 6

_EXAMPLE: dict[str, JsonValue] = {
    "task": NAME,
    "detections": [
        {"label": "cat", "class_index": 17, "score": 0.98, "box": [12.5, 30.0, 310.25, 402.0]},
    ],
    "size": [480, 640],
    "threshold": 0.5,
}


class Keypoint(BaseModel):
    """A keypoint of an object."""

    model_config = ConfigDict(defer_build=True)

    name: str | None = Field(None, description="if the model's keypoints have names")
    x: float
    y: float
    score: float = Field(description="higher is more certain; not a probability")


class DetectedObject(BaseModel):
    """An object in the image."""

    model_config = ConfigDict(defer_build=True)

    label: str
    class_index: int
    score: float = Field(description="how certain the model is, 0 to 1")
    box: list[float] = Field(description="left, top, right and bottom, in pixels of the image as sent")
    keypoints: list[Keypoint] | None = Field(None, description="if the model has them")
    mask: Mask | None = Field(None, description="if the model has masks, unless the request has `masks=none`")


class DetectionAnswer(BaseModel):
    """The objects in an image, as JSON."""

    model_config = ConfigDict(defer_build=True, json_schema_extra={"examples": [_EXAMPLE]})

    task: str = Field(description="detection")
    detections: list[DetectedObject] = Field(description="the objects, highest score first")
    size: list[int] = Field(description="height and width of the image, in pixels")
    threshold: float = Field(description="the minimum score of a listed object")


@dataclass(frozen=True, slots=True, eq=False)
class Detections(Drawn):
    """The objects in one image, highest score first.

    boxes: float32 (n, 4), left, top, right, bottom in pixels of the image as sent. scores: float32 (n,), 0 to
    1. class_indices: int64 (n,). keypoints: float32 (n, keypoints, 3), x, y and score; small_masks: float32
    (n, side, side), 0 to 1, spread over the boxes; None if the model has none. labels: one per class.
    size: (width, height) of the image. threshold: the minimum score. table: what they were read from.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_indices: NDArray[np.int64]
    keypoints: NDArray[np.float32] | None
    labels: tuple[str, ...]
    size: Size
    threshold: float
    table: "Table" = field(repr=False)
    small_masks: NDArray[np.float32] | None = field(repr=False)
    _row: NDArray[np.float32] = field(repr=False)
    _with_masks: bool = field(default=True, repr=False)
    _spec: Spec | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The label of each object."""
        return [self.labels[index] for index in self.class_indices]

    @property
    def has_masks(self) -> bool:
        """Whether there are masks."""
        return self.small_masks is not None and self._with_masks

    def mask(self, number: int) -> NDArray[np.bool_]:
        """The pixels of object `number`, counted from 0: bool (height, width)."""
        return self.runs(number).to_array()

    def runs(self, number: int, size: Size | None = None) -> Runs:
        """The pixels of object `number` as runs; in an image of another `size`, scaled to that."""
        assert self.small_masks is not None
        size = size or self.size
        scale = np.array(size, np.float32) / np.array(self.size, np.float32)
        box = self.boxes[number] * np.tile(scale, 2) if size != self.size else self.boxes[number]
        return pasted(self.small_masks[number], box, size)

    def at(
        self, threshold: float | None = None, most: int | None = None, *, masks: bool = True
    ) -> "Detections":
        """The objects of this image for another threshold, or only some of them.

        Args:
            threshold: Minimum score; None for the present one. Most models have a minimum of their own.
            most: Maximum number of objects; None for any number.
            masks: Whether there are masks.
        """
        least = self.threshold if threshold is None else threshold
        return self.table.read(self._row, self.labels, self.size, least, most, masks=masks, spec=self._spec)

    def draw(self, image: Image.Image) -> Image.Image:
        """The objects drawn over the image, which may be scaled; see `Drawn`."""
        scale = (np.array(image.size) / np.array(self.size)).astype(np.float32)
        return draw(image, [self._shape(number, scale, image.size) for number in range(len(self))])

    def _shape(self, number: int, scale: NDArray[np.float32], size: Size) -> Shape:
        return Shape(
            colour(int(self.class_indices[number])),
            f"{self.names[number]} {100 * self.scores[number]:.0f} %",
            tuple((self.boxes[number] * np.tile(scale, 2)).tolist()),
            () if self.keypoints is None else (self.keypoints[number, :, :2] * scale).tolist(),
            partial(self.runs, number, size) if self.has_masks else None,
        )

    def to_dict(self, top: int) -> dict[str, Any]:
        """The fields of `DetectionAnswer`; see `Answer`."""
        return {
            "task": NAME,
            "detections": [self._object(number) for number in range(len(self))],
            "size": list(self.size[::-1]),
            "threshold": self.threshold,
        }

    def _object(self, number: int) -> dict[str, Any]:
        values = {
            "label": self.labels[self.class_indices[number]],
            "class_index": int(self.class_indices[number]),
            "score": float(self.scores[number]),
            "box": self.boxes[number].tolist(),
        }
        if self.keypoints is not None:
            names = self.table.keypoint_names
            values["keypoints"] = [
                {**({"name": names[place]} if names else {}), "x": x, "y": y, "score": score}
                for place, (x, y, score) in enumerate(self.keypoints[number].tolist())
            ]
        if self.has_masks:
            values["mask"] = self.runs(number).to_coco()
        return values


@dataclass(frozen=True, slots=True)
class Table:
    """What an engine gives for an image: a fixed number of detections, filled up with zeros.

    Each has its box, in shares of the image's width and height, its score, the index of its class, and then,
    if the model has them, its keypoints (x and y in shares, and a score) and its mask.

    most: number of detections. mask: side of the masks, 0 if there are none. keypoints: number per object.
    keypoint_names: their names, if they have any. overlap: a box is dropped if its intersection over union
    with a better box of its class is larger, unless the engine has done that; 1 drops none. objects: maximum
    number of objects in an answer; None for any number.
    """

    most: int
    mask: int = 0
    keypoints: int = 0
    keypoint_names: tuple[str, ...] = ()
    overlap: float = 1.0
    objects: int | None = None

    @property
    def columns(self) -> int:
        """Number of values per detection."""
        return _REST + 3 * self.keypoints + self.mask**2

    @property
    def outputs(self) -> int:
        """Number of values per image."""
        return self.most * self.columns

    def read(
        self,
        row: NDArray[np.float32],
        labels: tuple[str, ...],
        size: Size,
        threshold: float = 0.0,
        most: int | None = None,
        *,
        masks: bool = True,
        spec: Spec | None = None,
    ) -> Detections:
        """The objects in a row, float32 (outputs,), with a score of `threshold` or more.

        Args:
            labels: one per class.
            size: (width, height) of the image as sent.
            most: maximum number of objects; None for any number.
            masks: whether the answer has masks.
            spec: how the image is preprocessed, if boxes are not in shares of the image as sent.

        Raises:
            EngineFailed: an object has a class without a label.
        """
        table = row.reshape(self.most, self.columns)
        table = table[(table[:, _SCORE] >= threshold) & (table[:, _SCORE] > 0)]
        table = self._chosen(table)[:most]
        largest = int(table[:, _CLASS].max(initial=0))
        if labels and largest >= len(labels):
            raise EngineFailed(
                f"the model found an object of the class {largest}, but there are labels for {len(labels)} "
                "classes; state a label for each class in model.yaml"
            )
        scale = np.array(size, np.float32)
        boxes = table[:, _BOX] * np.tile(scale, 2)
        if spec is not None and spec.pad is not None:
            view = np.array(spec.view(*size), np.float32)
            boxes = (table[:, _BOX] * np.tile(view[2:], 2) + np.tile(view[:2], 2)).clip(0, np.tile(scale, 2))
        points = None
        if self.keypoints:
            points = table[:, _REST : _REST + 3 * self.keypoints].reshape(-1, self.keypoints, 3).copy()
            points[..., :2] *= scale
        small = table[:, -(self.mask**2) :].reshape(-1, self.mask, self.mask) if self.mask else None
        return Detections(
            boxes=boxes,
            scores=table[:, _SCORE].copy(),
            class_indices=table[:, _CLASS].astype(np.int64),
            keypoints=points,
            labels=labels,
            size=size,
            threshold=threshold,
            table=self,
            small_masks=small,
            _row=row,
            _with_masks=masks,
            _spec=spec,
        )

    def _chosen(self, table: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rows of `table` that are not dropped for a better one, best first; see `overlap`, `objects`."""
        return table[kept(table[:, _BOX], table[:, _SCORE], table[:, _CLASS], self.overlap, self.objects)]


def intersections(boxes: NDArray[np.float32], box: NDArray[np.float32]) -> NDArray[np.float32]:
    """The intersection over union of each of `boxes`, float32 (n, 4), with `box`: float32 (n,)."""
    corner = np.maximum(boxes[:, :2], box[:2])
    common = np.prod(np.maximum(np.minimum(boxes[:, 2:], box[2:]) - corner, 0), 1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], 1) + np.prod(box[2:] - box[:2]) - common
    shares: NDArray[np.float32] = np.divide(common, areas, out=np.zeros_like(common), where=areas > 0)
    shares[(boxes == box).all(1)] = 1  # of boxes without an area, too
    return shares


def closest(
    found: Detections, box: NDArray[np.float32], class_index: int, among: set[int] | None = None
) -> tuple[int | None, float]:
    """The object of a class whose box overlaps `box` most, and by how much; of equals the first."""
    overlaps = np.where(found.class_indices == class_index, intersections(found.boxes, box), -1)
    if among is not None:
        overlaps[[index for index in range(len(overlaps)) if index not in among]] = -1
    if not len(overlaps) or overlaps.max() < 0:
        return None, 0.0
    return int(overlaps.argmax()), float(overlaps.max())
