"""Cost: what decoding an image takes at most, in memory and CPU, as its header says.

The bounds are measured: `tests/images/test_decode_cost.py` holds them against files that are dear to decode.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

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
"""CPU that a pixel takes at most, from bytes to RGB, on one core of a server of 2023."""
WEBP_BYTES = 13
"""Bytes that a pixel of a WebP takes: libwebp's two canvases, and what its lossless decoder works on."""
FIXED = 16 * 2**20
"""Bytes that any image may take beside its pixels: the blocks that Pillow allocates in, tables, metadata."""

_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_OTHERS = 4
"""Bytes that Pillow stores a pixel in; the first table's modes take fewer."""
_COEFFICIENT = 2
"""Bytes that libjpeg holds a coefficient in, where an image comes in several scans."""
_DEEPEST = 8
"""Bytes of a pixel of the deepest PNG, 16-bit RGBA."""
_TO_L_AT_ONCE = {"1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16"}
"""Modes that Pillow converts to L without a step between."""

_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH = 278, 322, 323
_BITS, _SAMPLES, _PLANAR, _PHOTOMETRIC, _COMPRESSION = 258, 277, 284, 262, 259
_YCBCR = 6
_WINDOWED = {34925, 50000}
"""LZMA and Zstandard, whose windows may be as large as what they decode to."""


class Cost(NamedTuple):
    """What decoding takes at most.

    memory: bytes at its peak, beside the file itself. seconds: of CPU, on the core that NANOSECONDS is for.
    """

    memory: int
    seconds: float


FREE = Cost(0, 0.0)
"""What an image costs that needs no decoding."""


def total(costs: Iterable[Cost]) -> Cost:
    """What all of it takes at most, held at the same time."""
    memory, seconds = zip(*costs, strict=True)
    return Cost(sum(memory), sum(seconds))


def webp(pixels: int, length: int) -> Cost:
    """The cost of a WebP file of `length` bytes, from its first frame's bytes to an upright image."""
    return Cost(pixels * WEBP_BYTES + 2 * length + FIXED, _seconds("WebP", pixels))


def opened(
    picture: ImageFile, name: str, mode: str, length: int, full: int, *, turns: bool, several_scans: bool
) -> Cost:
    """The cost of a file of `length` bytes that Pillow has opened as `picture`, in the format `name`.

    mode: RGB or L, to be converted to. full: pixels at full scale; `picture` may be of a reduced one.
    turns: whether it may be turned upright. several_scans: whether libjpeg has to hold all coefficients.
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
        turning = 2 * stored  # Pillow does it unasked
    elif name == "GIF":
        decoding += pixels
        between += 1  # what the next frame would be laid over
    elif any(tile.codec_name == "bmp_rle" for tile in picture.tile):
        kind = "BMP RLE"
        decoding += 2 * pixels
    converting = 0 if picture.mode == mode else pixels * (stored + between + target)
    memory = max(decoding, converting, pixels * turning) + length + FIXED
    return Cost(memory, _seconds(kind, coded))


def coded_pixels(picture: TiffImageFile) -> int:
    """Pixels that the tiles or strips of a TIFF have, also those beyond its edges and those over others."""
    width, rows = _piece(picture)
    down = -(-picture.height // rows)
    across = -(-picture.width // width)
    layers = max(1, _number(picture, _SAMPLES, 1)) if picture.tag_v2.get(_PLANAR) == 2 else 1
    return max(down * across, len(picture.tile) // layers) * width * rows


def piece_bytes(picture: TiffImageFile) -> int:
    """Bytes of one tile or strip of a TIFF image, decoded, all its layers together."""
    return math.prod(_piece(picture)) * _bits(picture) // 8 + 1


def _seconds(kind: str, pixels: int) -> float:
    return NANOSECONDS[kind] * pixels / 1e9


def _stored(mode: str) -> int:
    return _STORED.get(mode, _OTHERS)


def _samples(picture: JpegImageFile) -> float:
    """Samples for each pixel: 3 at 4:4:4, 1.5 at 4:2:0."""
    areas = [max(1, across) * max(1, down) for _, down, across, _ in picture.layer]
    largest = max((max(1, v) for _, v, _, _ in picture.layer), default=1) * max(
        (max(1, h) for _, _, h, _ in picture.layer), default=1
    )
    # Rows and columns are filled up to whole blocks.
    filled = (picture.width + 64) * (picture.height + 64) / max(1, picture.width * picture.height)
    return sum(areas) / largest * filled


def _strip_bytes(picture: TiffImageFile) -> int:
    """Bytes that libtiff and Pillow hold a strip or a tile in."""
    piece = piece_bytes(picture)
    size = piece
    if picture.tag_v2.get(_PHOTOMETRIC) == _YCBCR:
        size += _OTHERS * math.prod(_piece(picture))
    if picture.tag_v2.get(_COMPRESSION) in _WINDOWED:
        size += 2 * piece
    return size


def _piece(picture: TiffImageFile) -> tuple[int, int]:
    """Width and rows of a tile or strip."""
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
