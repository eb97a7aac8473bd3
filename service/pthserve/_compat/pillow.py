"""Pillow: image files of bounded memory and CPU time, from methods that Pillow does not document.

Written for Pillow 13; `tests/images` covers all of it.
"""

import io

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pthserve.errors import TooLarge

METADATA_READS = 1_000
"""Maximum number of reads for the metadata of a file, such as 250 segments of a JPEG or 500 comment blocks of
a GIF. Pillow parses them in Python, some of them in quadratic time."""
PIXEL_READS = 250_000
"""Maximum number of reads for the pixels: about a quarter of a second of Python."""
TIFF_NUMBERS = 2**18
"""Maximum size in bytes of a table of numbers in a TIFF. Each strip costs Pillow a tuple."""
_MIN_BLOCK = 2**16
"""Minimum size of a read in bytes, as in Pillow: the pixels of a WebP are larger than its file."""
_TIFF_BYTES = {1, 2, 7}  # BYTE, ASCII, UNDEFINED: TIFF 6.0, page 15


class MeteredFile(io.BytesIO):
    """A file in memory with a limited number of reads."""

    reads_left = METADATA_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise TooLarge("the image has too many tiles or segments; save it again with other settings")
        return super().read(size)


class Jpeg(JpegImageFile):
    """A JPEG that leaves its EXIF data unparsed when it is opened."""

    def _read_dpi_from_exif(self) -> None:
        """Do nothing: EXIF is parsed only when the orientation is needed."""

    def has_several_scans(self) -> bool:
        """Whether libjpeg holds all coefficients before it has the first pixel."""
        if "progressive" in self.info:
            return True
        assert isinstance(self.fp, MeteredFile)
        header = self.fp.getvalue()[max(0, self.fp.tell() - 64) : self.fp.tell()]
        start = header.rfind(b"\xff\xda")  # opening has read up to the end of the first scan's header
        return not 0 <= start < len(header) - 4 or header[start + 4] < self.layers


class Png(PngImageFile):
    """A PNG whose reads are limited again for the metadata after the pixels."""

    def load_end(self) -> None:
        assert isinstance(self.fp, MeteredFile)
        self.fp.reads_left = METADATA_READS
        super().load_end()


class Tiff(TiffImageFile):
    """A TIFF with tables of bounded size."""

    def _setup(self) -> None:
        tags = self.tag_v2
        if any(
            len(value) > TIFF_NUMBERS and tags.tagtype[tag] not in _TIFF_BYTES
            for tag, value in tags._tagdata.items()
        ):
            raise TooLarge("the TIFF image has too many strips; save it again with larger strips")
        super()._setup()


class WebP(WebPImageFile):
    """A WebP of which only the first frame is read."""

    def _get_next(self) -> tuple[bytes, int, int]:
        frame = super()._get_next()
        del self._decoder  # it holds two canvases of the size of the image
        return frame


FORMATS: dict[str, type[ImageFile]] = {
    "JPEG": Jpeg,
    "PNG": Png,
    "WebP": WebP,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "TIFF": Tiff,
}
"""The formats that a client may send."""


def load_pixels(picture: ImageFile, block: int) -> None:
    """Decode the pixels of an open image.

    Args:
        picture: An image opened on a `MeteredFile`.
        block: Number of bytes to pass to the decoder at once: with one call for the whole image, the
            interpreter's lock is released once.
    """
    assert isinstance(picture.fp, MeteredFile)
    picture.fp.reads_left = PIXEL_READS
    picture.decodermaxblock = max(_MIN_BLOCK, block)
    picture.load()
