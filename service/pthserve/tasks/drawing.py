"""Drawing: what a model found, over the image that it found it in."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pthserve.tasks.masks import Runs

_COLOURS = (
    (230, 25, 75),
    (0, 130, 200),
    (60, 180, 75),
    (245, 130, 48),
    (145, 30, 180),
    (0, 128, 128),
    (170, 110, 40),
    (128, 0, 0),
    (128, 128, 0),
    (0, 0, 128),
)
"""Of classes, in turn; white text is readable on each."""
_MASK = 0.45
"""How much of a mask's colour is over the image."""


class Shape(NamedTuple):
    """Something to draw, in the coordinates of the picture.

    class_index: of which it has the colour. box: left, top, right, bottom. text: at the box. points: x and y
    of each. mask: its pixels, or None; made when it is drawn, since it may be large.
    """

    class_index: int
    box: tuple[float, ...]
    text: str
    points: Sequence[tuple[float, float]] = ()
    mask: Callable[[], Runs] | None = None


def colour(class_index: int) -> tuple[int, int, int]:
    """The colour of a class."""
    return _COLOURS[class_index % len(_COLOURS)]


def draw(image: Image.Image, shapes: Sequence[Shape]) -> Image.Image:
    """A copy of `image`, RGB, with masks, boxes, points and texts; the first of `shapes` is on top."""
    picture = _with_masks(image.convert("RGB"), shapes)
    pen = ImageDraw.Draw(picture)
    wide = max(1, round(max(picture.size) / 400))
    font = ImageFont.load_default(size=max(10, round(max(picture.size) / 60)))
    for shape in reversed(shapes):
        left, top, right, bottom = shape.box
        tint = colour(shape.class_index)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=tint, width=wide)
        for x, y in shape.points:
            pen.ellipse((x - 2 * wide, y - 2 * wide, x + 2 * wide, y + 2 * wide), fill=tint)
        x0, y0, x1, y1 = pen.textbbox((0, 0), shape.text, font)
        height = y1 - y0 + 2 * wide
        above = top - height if top >= height else top
        pen.rectangle((left, above, left + x1 - x0 + 4 * wide, above + height), fill=tint)
        pen.text((left + 2 * wide - x0, above + wide - y0), shape.text, fill="white", font=font)
    return picture


def _with_masks(picture: Image.Image, shapes: Sequence[Shape]) -> Image.Image:
    masked = [shape for shape in reversed(shapes) if shape.mask is not None]
    if not masked:
        return picture
    pixels = np.array(picture)
    for shape in masked:
        assert shape.mask is not None
        inside = shape.mask().to_array()
        tint = np.array(colour(shape.class_index), np.float32)
        pixels[inside] = (pixels[inside] * (1 - _MASK) + tint * _MASK).astype(np.uint8)
    return Image.fromarray(pixels)
