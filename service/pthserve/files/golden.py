"""Golden images: images whose right answers are known."""

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pthserve.errors import PackError
from pthserve.files import regular_files

IOU = 0.5
"""The least intersection over union at which COCO counts two boxes as one."""


@dataclass(frozen=True, slots=True)
class GoldenBox:
    """An object that must be found.

    class_index, label: its class, by one of these. box: left, top, right and bottom in pixels. score: None
    where it is not known. iou: the least intersection over union that its box must have with a detection's.
    """

    class_index: int | None
    box: tuple[float, ...]
    score: float | None = None
    iou: float = IOU
    label: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is known of it, as plain values."""
        known = {"class_index": self.class_index, "label": self.label}
        values: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
        values["box"] = list(self.box)
        if self.score is not None:
            values["score"] = self.score
        if self.iou != IOU:
            values["iou"] = self.iou
        return values


@dataclass(frozen=True, slots=True)
class Golden:
    """A golden image: its file, and the answer that a model must give for it; see `kind`.

    class_index, probability: the class, and its probability where that is known.
    labels: the indices of all labels that apply. probabilities: one a label, None where it is not known.
    values: one an output, None where it is not known. vector: the embedding. boxes: all objects.
    class_map: a PNG whose pixels are class indices. agreement: the least share of its pixels that must agree;
    None leaves that to the tolerance.
    sha256: of the file, where a packed model says so; None where any content counts.
    recorded: whether the answer is one that pthserve gave, and no evidence of what is right.
    """

    image: Path
    class_index: int | None = None
    probability: float | None = None
    sha256: str | None = field(default=None, compare=False)
    labels: tuple[int, ...] | None = None
    probabilities: tuple[float | None, ...] | None = None
    values: tuple[float | None, ...] | None = None
    vector: tuple[float, ...] | None = None
    boxes: tuple[GoldenBox, ...] | None = None
    class_map: Path | None = None
    agreement: float | None = None
    recorded: bool = field(default=False, compare=False)

    @property
    def kind(self) -> str:
        """What it states: `class`, `labels`, `values`, `vector`, `boxes` or `class_map`."""
        if self.class_index is not None:
            return "class"
        if self.values is not None:
            return "values"
        if self.boxes is not None:
            return "boxes"
        if self.class_map is not None:
            return "class_map"
        return "vector" if self.vector is not None else "labels"

    def answer(self, folder: Path | None = None) -> dict[str, Any]:
        """What it states, by field, as plain values; the path of a file relative to `folder`."""
        fields = {
            "class_index": self.class_index,
            "probability": self.probability,
            **{
                name: None if getattr(self, name) is None else list(getattr(self, name))
                for name in ("labels", "probabilities", "values", "vector")
            },
            "boxes": None if self.boxes is None else [box.to_dict() for box in self.boxes],
            "class_map": self.class_map and os.path.relpath(self.class_map, folder),
            "agreement": self.agreement,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def of_labels(self, count: int) -> "Golden":
        """The class's probability as that of one of `count` labels, each of which has its own."""
        stated = [self.probability if number == self.class_index else None for number in range(count)]
        return replace(self, class_index=None, probability=None, probabilities=tuple(stated))

    def read(self) -> bytes:
        """The file's bytes, within the bounds of `regular_files`.

        Raises OSError, and PackError where they are not those that were packed.
        """
        data = regular_files.read(self.image, regular_files.IMAGE)
        if self.sha256 is not None and hashlib.sha256(data).hexdigest() != self.sha256:
            raise PackError(f"{self.image}: was changed; copy the packed model again")
        return data
