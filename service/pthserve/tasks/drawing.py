"""Drawing: what a model found, over the image that it found it in."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from pthserve.tasks.objects import Detections

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


def colour(class_index: int) -> tuple[int, int, int]:
    """The colour of a class."""
    return _COLOURS[class_index % len(_COLOURS)]


def draw(image: Image.Image, found: "Detections") -> Image.Image:
    """A copy of `image`, RGB, with masks, boxes, keypoints and labels; `image` may be of another size than
    what the objects were found in."""
    picture = image.convert("RGB")
    if found.has_masks:
        picture = _with_masks(picture, found)
    pen = ImageDraw.Draw(picture)
    wide = max(1, round(max(picture.size) / 400))
    font = ImageFont.load_default(size=max(10, round(max(picture.size) / 60)))
    scale = np.array(picture.size, np.float32) / np.array(found.size, np.float32)
    for number in reversed(range(len(found))):  # the surest on top
        left, top, right, bottom = (found.boxes[number].reshape(2, 2) * scale).ravel().tolist()
        tint = colour(int(found.class_indices[number]))
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=tint, width=wide)
        if found.keypoints is not None:
            for x, y in (found.keypoints[number, :, :2] * scale).tolist():
                pen.ellipse((x - 2 * wide, y - 2 * wide, x + 2 * wide, y + 2 * wide), fill=tint)
        text = f"{found.names[number]} {100 * found.scores[number]:.0f} %"
        x0, y0, x1, y1 = pen.textbbox((0, 0), text, font)
        height = y1 - y0 + 2 * wide
        above = top - height if top >= height else top
        pen.rectangle((left, above, left + x1 - x0 + 4 * wide, above + height), fill=tint)
        pen.text((left + 2 * wide - x0, above + wide - y0), text, fill="white", font=font)
    return picture


def _with_masks(picture: Image.Image, found: "Detections") -> Image.Image:
    pixels = np.array(picture)
    for number in reversed(range(len(found))):
        inside = found.runs(number, picture.size).to_array()
        tint = np.array(colour(int(found.class_indices[number])), np.float32)
        pixels[inside] = (pixels[inside] * (1 - _MASK) + tint * _MASK).astype(np.uint8)
    return Image.fromarray(pixels)
