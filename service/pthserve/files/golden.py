"""Golden images: images with known correct answers."""

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pthserve.errors import PackError
from pthserve.files import regular_files

IOU = 0.5
"""The minimum intersection over union at which COCO counts two boxes as the same object."""


@dataclass(frozen=True, slots=True)
class GoldenBox:
    """An object that the model must detect.

    Attributes:
        class_index: Its class, or None if `label` states it.
        box: Left, top, right and bottom in pixels.
        score: The expected score, 0 to 1, or None.
        iou: Minimum intersection over union with the box of the detection.
        label: The label of its class, or None if `class_index` states it.
    """

    class_index: int | None
    box: tuple[float, ...]
    score: float | None = None
    iou: float = IOU
    label: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, as plain values."""
        stated = {"class_index": self.class_index, "label": self.label}
        values: dict[str, Any] = {name: value for name, value in stated.items() if value is not None}
        values["box"] = list(self.box)
        if self.score is not None:
            values["score"] = self.score
        if self.iou != IOU:
            values["iou"] = self.iou
        return values


@dataclass(frozen=True, slots=True)
class Golden:
    """A golden image: its file, and the answer that a model must give for it; see `kind`.

    Attributes:
        class_index: The class.
        probability: The probability of the class, or None.
        sha256: The expected SHA-256 of the file, which a packed model states; None to accept any content.
        labels: The indices of all labels that apply.
        probabilities: One per label, None for unknown ones.
        values: One per output, None for unknown ones.
        vector: The embedding.
        boxes: All objects.
        class_map: A PNG file whose pixels are class indices.
        agreement: The minimum share of its pixels that must agree; None to use the tolerance.
        recorded: Whether pthserve recorded the answer, so that it is not evidence of being correct.
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
        """The kind of answer: `class`, `labels`, `values`, `vector`, `boxes` or `class_map`."""
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
        """Return the answer as plain values, by field; paths of files are relative to `folder`."""
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
        """Convert the answer from a class to one of `count` independent labels with the same probability."""
        stated = [self.probability if number == self.class_index else None for number in range(count)]
        return replace(self, class_index=None, probability=None, probabilities=tuple(stated))

    def read(self) -> bytes:
        """Return the content of the file, of at most `regular_files.IMAGE` bytes.

        Raises:
            OSError: It cannot be read.
            PackError: It has another SHA-256 than stated.
        """
        data = regular_files.read(self.image, regular_files.IMAGE)
        if self.sha256 is not None and hashlib.sha256(data).hexdigest() != self.sha256:
            raise PackError(f"{self.image}: was changed; copy the packed model again")
        return data
