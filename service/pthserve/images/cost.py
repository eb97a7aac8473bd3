"""Cost: upper bounds of memory and CPU time to decode an image, from its header.

The bounds are measured: `tests/images/test_decode_cost.py` checks them with files that are costly to decode.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pthserve.errors import TooLarge

NANOSECONDS = {
    "JPEG": 10,
    "JPEG progressive": 36,
    "PNG": 30,
    "WebP": 36,
    "BMP": 8,
    "BMP RLE": 300,
    "GIF": 12,
    "TIFF": 32,
}
"""Maximum CPU time per pixel in nanoseconds, from bytes to RGB, on one core of a server of 2023."""
WEBP_BYTES = 13
"""Bytes per pixel of a WebP: for libwebp's two canvases and its lossless decoder."""
FIXED = 16 * 2**20
"""Bytes that any image may need in addition to its pixels: Pillow's memory blocks, tables, metadata."""

_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_OTHERS = 4
"""Bytes per pixel in Pillow for the modes that are not in _STORED."""
_COEFFICIENT = 2
"""Bytes per coefficient in libjpeg, which keeps all coefficients of an image with several scans."""
_DEEPEST = 8
"""Bytes per pixel of the deepest PNG, 16-bit RGBA."""
_TO_L_AT_ONCE = {"1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16"}
"""Modes that Pillow converts to L without an intermediate image."""

_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH = 278, 322, 323
_BITS, _SAMPLES, _PLANAR, _PHOTOMETRIC, _COMPRESSION = 258, 277, 284, 262, 259
_YCBCR = 6
_WINDOWED = {34925, 50000}
"""LZMA and Zstandard, whose windows may be as large as the decoded data."""


class Cost(NamedTuple):
    """Upper bounds of the cost to decode an image.

    Attributes:
        memory: Peak memory in bytes, without the file itself.
        seconds: CPU time in seconds, on the core for which NANOSECONDS holds.
    """

    memory: int
    seconds: float

    def check(self, most: int) -> None:
        """Raise TooLarge if the image needs more than `most` bytes."""
        if self.memory > most:
            raise TooLarge(
                f"the image needs {self.memory >> 20} MiB to decode; "
                f"the limit is {most >> 20} MiB (decode_memory)"
            )


FREE = Cost(0, 0.0)
"""The cost of an image that need not be decoded."""


def total(costs: Iterable[Cost]) -> Cost:
    """What all of it takes at most, held at the same time."""
    memory, seconds = zip(*costs, strict=True)
    return Cost(sum(memory), sum(seconds))


def webp(pixels: int, length: int) -> Cost:
    """Return the cost of a WebP file of `length` bytes, from its first frame to an upright image."""
    return Cost(pixels * WEBP_BYTES + 2 * length + FIXED, _seconds("WebP", pixels))


def opened(
    picture: ImageFile, name: str, mode: str, length: int, full: int, *, turns: bool, several_scans: bool
) -> Cost:
    """Return the cost of an image that Pillow has opened.

    Args:
        picture: The image, not decoded yet.
        name: Its format, a key of `decode.FORMATS`.
        mode: RGB or L, to which it will be converted.
        length: Size of the file in bytes.
        full: Number of pixels at full scale; `picture` may have a reduced scale.
        turns: Whether it may be turned upright.
        several_scans: Whether libjpeg must keep all coefficients.
    """
    pixels = picture.width * picture.height
    stored, target = _stored(picture.mode), _stored(mode)
    decoding = pixels * stored + 2 * _DEEPEST * picture.width
    between = _OTHERS if mode == "L" and picture.mode not in _TO_L_AT_ONCE else 0
    between += picture.mode == "F"
    kind, coded, turning = name, full, 2 * target if turns else 0
    if isinstance(picture, JpegImageFile):
        if several_scans:
            kind = "JPEG progressive"
            decoding += round(full * _COEFFICIENT * _samples(picture))
    elif isinstance(picture, TiffImageFile):
        coded = max(full, coded_pixels(picture))
        decoding += _strip_bytes(picture)
        turning = 2 * stored  # Pillow always turns a TIFF
    elif name == "GIF":
        decoding += pixels
        between += 1  # the canvas for the next frame
    elif any(tile.codec_name == "bmp_rle" for tile in picture.tile):
        kind = "BMP RLE"
        decoding += 2 * pixels
    converting = 0 if picture.mode == mode else pixels * (stored + between + target)
    memory = max(decoding, converting, pixels * turning) + length + FIXED
    return Cost(memory, _seconds(kind, coded))


def coded_pixels(picture: TiffImageFile) -> int:
    """Return the number of pixels in all tiles or strips of a TIFF, including those outside the image."""
    width, rows = _piece(picture)
    down = -(-picture.height // rows)
    across = -(-picture.width // width)
    layers = max(1, _number(picture, _SAMPLES, 1)) if picture.tag_v2.get(_PLANAR) == 2 else 1
    return max(down * across, len(picture.tile) // layers) * width * rows


def piece_bytes(picture: TiffImageFile) -> int:
    """Return the size of one decoded tile or strip of a TIFF in bytes, with all its layers."""
    return math.prod(_piece(picture)) * _bits(picture) // 8 + 1


def _seconds(kind: str, pixels: int) -> float:
    return NANOSECONDS[kind] * pixels / 1e9


def _stored(mode: str) -> int:
    return _STORED.get(mode, _OTHERS)


def _samples(picture: JpegImageFile) -> float:
    """Return the number of samples per pixel: 3 at 4:4:4, 1.5 at 4:2:0."""
    areas = [max(1, across) * max(1, down) for _, down, across, _ in picture.layer]
    largest = max((max(1, v) for _, v, _, _ in picture.layer), default=1) * max(
        (max(1, h) for _, _, h, _ in picture.layer), default=1
    )
    # Width and height are padded to whole blocks.
    filled = (picture.width + 64) * (picture.height + 64) / max(1, picture.width * picture.height)
    return sum(areas) / largest * filled


def _strip_bytes(picture: TiffImageFile) -> int:
    """Return the bytes that libtiff and Pillow need for a strip or tile."""
    piece = piece_bytes(picture)
    size = piece
    if picture.tag_v2.get(_PHOTOMETRIC) == _YCBCR:
        size += _OTHERS * math.prod(_piece(picture))
    if picture.tag_v2.get(_COMPRESSION) in _WINDOWED:
        size += 2 * piece
    return size


def _piece(picture: TiffImageFile) -> tuple[int, int]:
    """Return width and number of rows of a tile or strip."""
    if _TILE_WIDTH in picture.tag_v2:
        return max(1, _number(picture, _TILE_WIDTH, 1)), max(1, _number(picture, _TILE_LENGTH, 1))
    rows = _number(picture, _ROWS_PER_STRIP, picture.height)
    return picture.width, min(max(1, rows), picture.height)


def _bits(picture: TiffImageFile) -> int:
    bits = picture.tag_v2.get(_BITS, (1,))
    deepest = max(bits) if isinstance(bits, tuple) else bits
    return int(deepest) * max(1, _number(picture, _SAMPLES, 1))


def _number(picture: TiffImageFile, tag: int, default: int) -> int:
    value = picture.tag_v2.get(tag, default)
    return value if isinstance(value, int) else default
