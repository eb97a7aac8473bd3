"""Decode: image bytes from a client to a Pillow image, within limits of memory and time.

Pillow decodes the pixels; this module checks beforehand which images Pillow gets. It does not change Pillow's
global state, so any number of threads may decode at the same time.
"""

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from PIL.Image import DecompressionBombError, Image, Transpose
from PIL.ImageFile import ImageFile

from pthserve._compat.pillow import FORMATS, Jpeg, MeteredFile, Tiff, load_pixels
from pthserve.errors import BrokenImage, RequestError, TooLarge, UnsupportedImage
from pthserve.images import cost

# Pillow's warnings are about the metadata of clients' images.
warnings.filterwarnings("ignore", module=r"PIL\.")

JPEG_SCANS = 30
"""Maximum number of scans of a JPEG. Encoders write about ten; each needs a pass over the image."""
SCANNED_PIXELS = 900_000_000
"""Maximum of pixels times scans of a JPEG: 18 scans, as encoders write for CMYK, with 50 million pixels."""
CODED = 2
"""Maximum number of pixels in the tiles or strips of a TIFF, as a multiple of the limit for an image: tiles
may extend beyond the edges of the image."""
WEBP_PIXELS = 25_000_000
"""Maximum number of pixels of a WebP. While Pillow copies the decoded pixels, it keeps the interpreter's
lock, so no request is answered; with twice as many pixels, for 0.1 s."""
SLOW_PIXELS = 4_000_000
"""Maximum number of pixels of a run-length-encoded BMP, which Pillow decodes in Python."""

_OTHERS = (
    # offset, first bytes there, format
    (4, re.compile(rb"ftyp(avi[fs]|mif1.{4,24}avi[fs])", re.DOTALL), "AVIF"),
    (4, re.compile(rb"ftyp(hei[cxms]|hev[cx]|mif1|msf1)"), "HEIC"),
    (0, re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), "JPEG 2000"),
    (0, re.compile(rb"\x00\x00\x01\x00[^\x00]\x00"), "ICO"),
    (0, re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (0, re.compile(rb"8BPS"), "Photoshop"),
    (0, re.compile(rb"\s*(<\?xml[^>]{0,200}>\s*)?(<!--.{0,200}-->\s*)?<svg[\s>]", re.DOTALL), "SVG"),
    (0, re.compile(rb"%PDF-"), "PDF"),
)
"""Common formats that are not supported, with their first bytes."""

_EXIF_ORIENTATION = 0x0112

_MAGIC = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WebP>RIFF....WEBP)|(?P<BMP>BM)|(?P<GIF>GIF8[79]a)"
    rb"|(?P<TIFF>II\*\0|MM\0\*|II\+\0|MM\0\+)",
    re.DOTALL,
)


class _Turn(NamedTuple):
    """How to undo an EXIF orientation.

    Attributes:
        method: Pillow's operation.
        swapped: Whether width and height are swapped.
        from_right: Whether the left edge of the stored image is on the right afterwards.
        from_bottom: Whether its top edge is at the bottom afterwards.
    """

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

    Attributes:
        image: The pixels, of mode RGB or L.
        box: (left, top, right, bottom) of the picture within `image`, in its pixels. They need not be
            integers for a JPEG that was decoded at a reduced scale.
        size: (width, height) of the picture at full scale.
    """

    image: Image
    box: tuple[float, float, float, float]
    size: tuple[int, int]


def _named(data: bytes) -> str:
    """Return a message about data that is not an image of a supported format."""
    for offset, magic, name in _OTHERS:
        if magic.match(data, offset):
            return f"the image is {name}, which is not supported"
    return "the data is not a supported image"


class Picture:
    """An image whose header has been read, and whose pixels have not been decoded.

    Attributes:
        size: (width, height) at full scale, before it is turned upright.
        box: As in `Decoded`, before it is turned upright.
        cost: Upper bounds of the cost of `decode`.
        turned: Whether `decode` has swapped width and height by turning the image.
    """

    turned = False

    def __init__(
        self,
        data: bytes,
        mode: Literal["RGB", "L"],
        *,
        max_pixels: int,
        exif: bool = False,
        shortest: int | None = None,
    ) -> None:
        """Read the header of the image in `data`.

        Args:
            mode: The mode of the decoded image.
            max_pixels: Maximum number of pixels.
            exif: Whether to turn the image upright according to its EXIF orientation.
            shortest: The minimum width and height to which a JPEG may be reduced while it is decoded; None to
                decode at full scale.

        Raises:
            UnsupportedImage: The format is not supported.
            BrokenImage: The header is damaged.
            TooLarge: The image has too many pixels, scans or tiles.
        """
        magic = _MAGIC.match(data)
        if magic is None or magic.lastgroup is None:
            raise UnsupportedImage(f"{_named(data)}; send one of {', '.join(FORMATS)}")
        self._data = data
        self._mode = mode
        self._name = magic.lastgroup
        self._exif = exif
        self._opened: ImageFile | None = None
        with _faults(self._name):
            if self._name == "WebP":
                # Opening it with Pillow would need half of the memory of decoding it.
                self.size = _webp_size(data)
                check_size(self.size, min(max_pixels, WEBP_PIXELS))
                self.box = (0.0, 0.0, float(self.size[0]), float(self.size[1]))
                self.cost = cost.webp(self.size[0] * self.size[1], len(data))
            else:
                self._open(max_pixels, shortest)

    def decode(self) -> Decoded:
        """Return the first frame, as Pillow's `convert(mode)`; can be called once.

        Raises:
            BrokenImage: The image is damaged.
            TooLarge: There is not enough memory to decode it.
        """
        with _faults(self._name):
            if self._opened is None:
                self._opened = FORMATS[self._name](MeteredFile(self._data))
                if self._opened.size != self.size:
                    raise BrokenImage("the WebP image is broken: its header and its frames differ in size")
            return self._decode()

    def _open(self, max_pixels: int, shortest: int | None) -> None:
        scans = self._data.count(b"\xff\xda") if self._name == "JPEG" else 0
        if scans > JPEG_SCANS:
            raise TooLarge(f"the JPEG image has more than {JPEG_SCANS} scans; save it as a baseline JPEG")
        file = MeteredFile(self._data)
        self._opened = picture = FORMATS[self._name](file)
        self.size = picture.size
        pixels = self.size[0] * self.size[1]
        slow = any(tile.codec_name == "bmp_rle" for tile in picture.tile)
        check_size(self.size, min(max_pixels, SLOW_PIXELS) if slow else max_pixels)
        several = isinstance(picture, Jpeg) and picture.has_several_scans()
        if several and pixels * scans > SCANNED_PIXELS:
            raise TooLarge(
                f"the JPEG image has {scans} scans of {pixels} pixels each, which is too many; save it as a "
                "baseline JPEG"
            )
        if isinstance(picture, Tiff) and cost.coded_pixels(picture) > CODED * max_pixels:
            raise TooLarge(
                "the strips or tiles of the TIFF image are much larger than the image; save it again with "
                "smaller ones"
            )
        self.box = (0.0, 0.0, float(self.size[0]), float(self.size[1]))
        if shortest is not None:
            drafted = picture.draft(None, (shortest, shortest))
            self.box = drafted[1] if drafted else self.box
        self.cost = cost.opened(
            picture,
            self._name,
            self._mode,
            len(self._data),
            pixels,
            turns=self._exif,
            several_scans=several,
        )

    def _decode(self) -> Decoded:
        picture, self._opened = self._opened, None
        assert picture is not None
        # Pillow reads each strip of a TIFF in blocks of this size.
        block = cost.piece_bytes(picture) if isinstance(picture, Tiff) else len(self._data)
        load_pixels(picture, min(block, len(self._data)))
        turn = _TURNS.get(picture.getexif().get(_EXIF_ORIENTATION, 1)) if self._exif else None
        picture.info.pop("transparency", None)  # not needed in RGB or L; Pillow would convert it and warn
        image: Image = picture if picture.mode == self._mode else picture.convert(self._mode)
        del picture
        if turn is None:
            return Decoded(image, self.box, self.size)
        image = image.transpose(turn.method)
        across, down = self.box[:1:-1] if turn.swapped else self.box[2:]
        left = image.width - across if turn.from_right else 0.0
        top = image.height - down if turn.from_bottom else 0.0
        self.turned = turn.swapped
        size = (self.size[1], self.size[0]) if turn.swapped else self.size
        return Decoded(image, (left, top, left + across, top + down), size)


@contextmanager
def _faults(name: str) -> Iterator[None]:
    """Convert errors of Pillow to errors of this service."""
    try:
        yield
    except RequestError:
        raise
    except (DecompressionBombError, MemoryError) as error:
        raise TooLarge(f"the {name} image is too large to decode") from error
    except Exception as error:  # Pillow's decoders raise more types than its documentation names
        reason = str(error) or type(error).__name__
        raise BrokenImage(f"the {name} image is broken: {reason[:200]}") from error


def check_size(size: tuple[int, int], limit: int) -> None:
    """Check the size of an image.

    Args:
        size: (width, height) in pixels.
        limit: Maximum number of pixels.

    Raises:
        TooLarge: It has more pixels.
        BrokenImage: It has no pixels.
    """
    if 0 in size:
        raise BrokenImage(f"the image is broken: its header says {size[0]} x {size[1]} pixels")
    if size[0] * size[1] > limit:
        raise TooLarge(f"the image has {size[0]} x {size[1]} pixels; the limit is {limit}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of the canvas of a WebP: RFC 9649, 2.5 to 2.7."""
    kind, body = data[12:16], data[20:30]
    if len(body) == 10 and kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if len(body) == 10 and kind == b"VP8 ":
        return struct.unpack("<H", body[6:8])[0] & 0x3FFF, struct.unpack("<H", body[8:10])[0] & 0x3FFF
    if len(body) >= 5 and kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise BrokenImage("the WebP image is broken: it does not start with an image")
