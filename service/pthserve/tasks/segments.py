"""Segments: the class of each pixel of an image, and which of it a request asks for."""

import base64
import io
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pthserve.images.cost import Cost
from pthserve.tasks.base import Deferred, Drawn, Encoded, Size, Work
from pthserve.tasks.class_maps import ClassMap, Scores, class_map
from pthserve.tasks.drawing import Shape, draw, palette
from pthserve.tasks.masks import Mask, Runs

NAME = "segmentation"
"""Of the task."""

_PALETTE = 256
"""Maximum number of classes in a picture with a palette; one with more has 16 bits a pixel and no colours."""
_WRITING = 4
"""Bytes per pixel and byte of its class while a picture is written: as columns, as rows, and encoded."""
_NANOSECONDS = 30.0
"""Maximum CPU time in nanoseconds to write a pixel, on one core of a server of 2023."""

_EXAMPLE: dict[str, JsonValue] = {
    "task": NAME,
    "classes": [
        {"label": "__background__", "class_index": 0, "pixels": 9, "share": 0.75},
        {"label": "cat", "class_index": 8, "pixels": 3, "share": 0.25},
    ],
    "size": [3, 4],
}


class Segment(BaseModel):
    """A class that has pixels in the image."""

    model_config = ConfigDict(defer_build=True)

    label: str
    class_index: int
    pixels: int = Field(description="how many pixels of the image as sent have this class")
    share: float = Field(description="their share of the image, 0 to 1")
    mask: Mask | None = Field(
        None, description="the pixels of the class, unless the request has another `masks` than `rle`"
    )


class SegmentationAnswer(BaseModel):
    """The class of each pixel of an image, as JSON."""

    model_config = ConfigDict(defer_build=True, json_schema_extra={"examples": [_EXAMPLE]})

    task: str = Field(description="segmentation")
    classes: list[Segment] = Field(description="the classes that have pixels, the largest first")
    size: list[int] = Field(description="height and width of the image, in pixels")
    class_map: str | None = Field(
        None, description="with `masks=png`: a PNG as base64, whose pixels are class indices"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation(Drawn, Deferred, Encoded):
    """The class of each pixel of an image, at the size of the image as sent.

    labels: one per class. size: (width, height) of the image. scores: what it is computed from, when it is
    first needed. masks: how the JSON states the pixels: `rle`, `png` or `none`. overlaid: see `Encoded`.
    """

    labels: tuple[str, ...]
    size: Size
    scores: Scores = field(repr=False)
    masks: str = field(default="rle", repr=False)
    overlaid: bool = field(default=False, repr=False)
    _computed: list[ClassMap] = field(default_factory=list, repr=False)

    @property
    def segments(self) -> ClassMap:
        """The classes as runs of pixels."""
        if not self._computed:
            self._computed.append(class_map(self.scores, self.size))
        return self._computed[0]

    @property
    def class_map(self) -> NDArray[Any]:
        """The class of each pixel: uint8 (height, width), or uint16 if there are more than 256 classes."""
        return self.segments.to_array(np.uint8 if len(self.labels) <= _PALETTE else np.uint16)

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Number of pixels of each class: int64 (classes,)."""
        return self.segments.pixels(len(self.labels))

    @property
    def shares(self) -> NDArray[np.float64]:
        """The share of the image that each class has, 0 to 1: float64 (classes,)."""
        return self.pixels / (self.size[0] * self.size[1])

    @property
    def class_indices(self) -> NDArray[np.int64]:
        """The classes that have pixels, the largest first."""
        pixels = self.pixels
        return np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)]

    @property
    def names(self) -> list[str]:
        """The labels of `class_indices`."""
        return [self.labels[index] for index in self.class_indices]

    def mask(self, class_index: int) -> NDArray[np.bool_]:
        """The pixels of a class: bool (height, width)."""
        return self.runs(class_index).to_array()

    def runs(self, class_index: int) -> Runs:
        """The pixels of a class as runs."""
        return self.segments.runs(class_index)

    @property
    def computing(self) -> Work:
        """See `Deferred`."""
        return Work(self.scores.cost(self.size), lambda: self.segments)

    @property
    def writing(self) -> Cost:
        """See `Deferred`."""
        pixels = self.size[0] * self.size[1]
        return Cost(_WRITING * pixels * (1 + (len(self.labels) > _PALETTE)), pixels * _NANOSECONDS / 1e9)

    def png(self) -> bytes:
        """The class map as PNG: each pixel is the index of its class, with a palette up to 256 classes."""
        picture = Image.fromarray(self.class_map)
        if picture.mode == "L":
            picture.putpalette([number for colour in palette(len(self.labels)) for number in colour])
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        return file.getvalue()

    def draw(self, image: Image.Image) -> Image.Image:
        """The classes but the first drawn over the image, which may be scaled; see `Drawn`."""
        scaled = class_map(self.scores, image.size) if image.size != self.size else self.segments
        return draw(
            image,
            [
                Shape(
                    colour=palette(len(self.labels))[index],
                    text=f"{self.labels[index]} {100 * share:.0f} %",
                    mask=partial(scaled.runs, int(index)) if index else None,
                )
                for index, share in zip(self.class_indices, self.shares[self.class_indices], strict=True)
            ],
        )

    def to_dict(self, top: int) -> dict[str, Any]:
        """The fields of `SegmentationAnswer`; see `Answer`."""
        pixels, shares = self.pixels, self.shares
        return {
            "task": NAME,
            "classes": [
                {
                    "label": self.labels[index],
                    "class_index": int(index),
                    "pixels": int(pixels[index]),
                    "share": float(shares[index]),
                    **({"mask": self.runs(int(index)).to_coco()} if self.masks == "rle" else {}),
                }
                for index in self.class_indices
            ],
            "size": list(self.size[::-1]),
            **({"class_map": base64.b64encode(self.png()).decode()} if self.masks == "png" else {}),
        }
