"""Bytes from a client to a Pillow image, within bounds of memory and time.

Pillow decides what the pixels are; this module decides what Pillow may see. No global state of Pillow's is
changed, so that any number of threads may decode at once.
"""

import io
import re
import warnings
from typing import Literal, NamedTuple

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import DecompressionBombError, Image, Transpose
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pthserve.errors import BrokenImage, RequestError, TooLarge, UnsupportedImage

# What Pillow has to say about a client's metadata is of use to nobody.
warnings.filterwarnings("ignore", module=r"PIL\.")

METADATA_READS = 1_000
"""Pieces that a file's metadata may come in: 250 segments of a JPEG, or 500 blocks of a GIF's comment. Pillow
parses them in Python, and some in time quadratic in their number."""
PIXEL_READS = 1_000_000
"""Pieces that the pixels may come in: about a second of Python."""
JPEG_SCANS = 30
"""Scans that a JPEG may have. Encoders write about ten; each costs a pass over the image for a few bytes."""
TIFF_NUMBERS = 2**18
"""Bytes that a table of numbers in a TIFF may have. Where it lists strips, each costs Pillow a tuple."""
SLOW_PIXELS = 4_000_000
"""Pixels that a run-length-coded BMP may have: Pillow decodes those in Python."""

_EXIF_ORIENTATION = 0x0112
_TIFF_BYTES = {1, 2, 7}  # BYTE, ASCII, UNDEFINED: TIFF 6.0, page 15


class _Metered(io.BytesIO):
    """A file in memory that may be read only so many times."""

    reads_left = METADATA_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise TooLarge("the image is cut into more pieces than this service reads; save it anew")
        return super().read(size)


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Leave EXIF unread: it is parsed only when its orientation is asked for."""


class _Png(PngImageFile):
    def load_end(self) -> None:
        assert isinstance(self.fp, _Metered)
        self.fp.reads_left = METADATA_READS  # what follows the pixels is metadata again
        super().load_end()


class _Tiff(TiffImageFile):
    def _setup(self) -> None:
        tags = self.tag_v2
        if any(
            len(value) > TIFF_NUMBERS and tags.tagtype[tag] not in _TIFF_BYTES
            for tag, value in tags._tagdata.items()
        ):
            raise TooLarge("the TIFF image is cut into more strips than this service reads; save it anew")
        super()._setup()


FORMATS: dict[str, type[ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": _Png,
    "WebP": WebPImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "TIFF": _Tiff,
}
"""The formats a client may send, and what reads them."""

_MAGIC = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WebP>RIFF....WEBP)|(?P<BMP>BM)|(?P<GIF>GIF8[79]a)"
    rb"|(?P<TIFF>II\*\0|MM\0\*|II\+\0|MM\0\+)",
    re.DOTALL,
)


class _Turn(NamedTuple):
    """How to undo an EXIF orientation, and from which edges the picture then starts."""

    method: Transpose
    swapped: bool
    from_right: bool
    from_bottom: bool


_TURNS = {
    2: _Turn(Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: _Turn(Transpose.ROTATE_180, False, True, True),
    4: _Turn(Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: _Turn(Transpose.TRANSPOSE, True, False, False),
    6: _Turn(Transpose.ROTATE_270, True, True, False),
    7: _Turn(Transpose.TRANSVERSE, True, True, True),
    8: _Turn(Transpose.ROTATE_90, True, False, True),
}
"""Orientations of EXIF 2.32, 4.6.4; 1 is upright."""


class Decoded(NamedTuple):
    """A decoded image.

    image: the pixels, of mode RGB or L.
    box: (left, top, right, bottom) of the picture within `image`, in its pixels; a JPEG that was decoded at a
    reduced scale may stand over at an edge by a part of a pixel.
    size: (width, height) of the picture at full scale.
    """

    image: Image
    box: tuple[float, float, float, float]
    size: tuple[int, int]


def read(
    data: bytes,
    mode: Literal["RGB", "L"],
    *,
    max_pixels: int,
    exif: bool = False,
    shortest: int | None = None,
) -> Decoded:
    """The first frame of the image in `data`, as Pillow's `convert(mode)` has it.

    exif: whether to turn the image upright as its EXIF orientation says.
    shortest: a JPEG may be decoded at a reduced scale that leaves each side so many pixels; None: it may not.
    Raises UnsupportedImage, BrokenImage, or TooLarge (before the pixels are decoded).
    """
    magic = _MAGIC.match(data)
    if magic is None or magic.lastgroup is None:
        raise UnsupportedImage(f"the data is not an image; send one of {', '.join(FORMATS)}")
    try:
        return _read(data, magic.lastgroup, mode, max_pixels, exif, shortest)
    except RequestError:
        raise
    except (DecompressionBombError, MemoryError) as error:
        raise TooLarge(f"the {magic.lastgroup} image is too large to decode") from error
    except Exception as error:  # Pillow's decoders raise more types than its documentation names
        reason = str(error) or type(error).__name__
        raise BrokenImage(f"the {magic.lastgroup} image is broken: {reason[:200]}") from error


def _read(data: bytes, name: str, mode: str, max_pixels: int, exif: bool, shortest: int | None) -> Decoded:
    if name == "JPEG" and data.count(b"\xff\xda") > JPEG_SCANS:
        raise TooLarge(f"the JPEG image has more than {JPEG_SCANS} scans; save it anew")
    file = _Metered(data)
    picture = FORMATS[name](file)
    width, height = picture.size
    slow = any(tile.codec_name == "bmp_rle" for tile in picture.tile)
    limit = min(max_pixels, SLOW_PIXELS) if slow else max_pixels
    if width * height > limit:
        raise TooLarge(f"the image has {width} x {height} pixels; at most {limit} are allowed")

    box = (0.0, 0.0, float(width), float(height))
    if shortest is not None:
        drafted = picture.draft(None, (shortest, shortest))
        box = drafted[1] if drafted else box
    file.reads_left = PIXEL_READS
    picture.decodermaxblock = len(data)  # one call, and the interpreter's lock given up once
    picture.load()
    picture.info.pop("transparency", None)  # of no use in either mode; Pillow would convert it too, and warn
    image: Image = picture if picture.mode == mode else picture.convert(mode)

    turn = _TURNS.get(picture.getexif().get(_EXIF_ORIENTATION, 1)) if exif else None
    if turn is None:
        return Decoded(image, box, (width, height))
    image = image.transpose(turn.method)
    across, down = box[:1:-1] if turn.swapped else box[2:]
    left = image.width - across if turn.from_right else 0.0
    top = image.height - down if turn.from_bottom else 0.0
    size = (height, width) if turn.swapped else (width, height)
    return Decoded(image, (left, top, left + across, top + down), size)
