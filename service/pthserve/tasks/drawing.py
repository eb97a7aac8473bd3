"""Drawing: what a model found, over the image that it found it in."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pthserve.tasks.masks import Runs

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

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
"""Of classes of objects, in turn; white text is readable on each."""
_BRIGHT = 150
"""The luma from which on text is black."""
_MASK = 0.45
"""How much of a mask's colour is over the image."""


class Shape(NamedTuple):
    """Something to draw, in the coordinates of the picture.

    text: at the box; where there is no box, in a corner of the picture. box: left, top, right, bottom.
    points: x and y of each. mask: its pixels, or None; made when it is drawn, since it may be large.
    """

    colour: Colour
    text: str
    box: tuple[float, ...] | None = None
    points: Sequence[tuple[float, float]] = ()
    mask: Callable[[], Runs] | None = None


def colour(class_index: int) -> Colour:
    """The colour of a class of objects."""
    return _COLOURS[class_index % len(_COLOURS)]


def palette(count: int) -> list[Colour]:
    """The colours of the classes of pixels: those of Pascal VOC, whose first is black.

    From the lowest bit of an index on, every third goes to red, to green or to blue, the highest first there:
    `VOClabelcolormap` of the VOC 2012 development kit.
    """
    return [
        tuple(  # type: ignore[misc]
            sum((index >> (3 * place + channel) & 1) << (7 - place) for place in range(8))
            for channel in range(3)
        )
        for index in range(count)
    ]


def draw(image: Image.Image, shapes: Sequence[Shape]) -> Image.Image:
    """A copy of `image`, RGB, with masks, boxes, points and texts; the first of `shapes` is on top."""
    picture = _with_masks(image.convert("RGB"), shapes)
    pen = _Pen(picture)
    for shape in reversed([shape for shape in shapes if shape.box is not None]):
        pen.box(shape)
    above = 0.0
    for shape in shapes:
        if shape.box is None:
            above += pen.text(shape, 0.0, above)
    return picture


class _Pen:
    """Draws lines and texts, whose sizes follow from the picture's."""

    def __init__(self, picture: Image.Image) -> None:
        self._pen = ImageDraw.Draw(picture)
        self._wide = max(1, round(max(picture.size) / 400))
        self._font = ImageFont.load_default(size=max(10, round(max(picture.size) / 60)))

    def box(self, shape: Shape) -> None:
        """The shape's box, points and text."""
        assert shape.box is not None
        left, top, right, bottom = shape.box
        wide = self._wide
        self._pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=shape.colour, width=wide)
        for x, y in shape.points:
            self._pen.ellipse((x - 2 * wide, y - 2 * wide, x + 2 * wide, y + 2 * wide), fill=shape.colour)
        height = self._height(shape.text)
        self.text(shape, left, top - height if top >= height else top)

    def text(self, shape: Shape, left: float, above: float) -> float:
        """The shape's text, on its colour, and how high that is."""
        x0, y0, x1, _ = self._pen.textbbox((0, 0), shape.text, self._font)
        height, wide = self._height(shape.text), self._wide
        self._pen.rectangle((left, above, left + x1 - x0 + 4 * wide, above + height), fill=shape.colour)
        place = left + 2 * wide - x0, above + wide - y0
        self._pen.text(place, shape.text, fill=_readable_on(shape.colour), font=self._font)
        return height

    def _height(self, text: str) -> float:
        _, y0, _, y1 = self._pen.textbbox((0, 0), text, self._font)
        return y1 - y0 + 2 * self._wide


def _readable_on(colour: Colour) -> str:
    """Black or white, by the colour's luma: ITU-R BT.601."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > _BRIGHT else "white"


def _with_masks(picture: Image.Image, shapes: Sequence[Shape]) -> Image.Image:
    masked = [shape for shape in reversed(shapes) if shape.mask is not None]
    if not masked:
        return picture
    pixels = np.array(picture)
    for shape in masked:
        assert shape.mask is not None
        inside = shape.mask().to_array()
        tint = np.array(shape.colour, np.float32)
        pixels[inside] = (pixels[inside] * (1 - _MASK) + tint * _MASK).astype(np.uint8)
    return Image.fromarray(pixels)
