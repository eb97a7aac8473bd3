"""Photos, and files of every format and mode that a client may send."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import skimage.data
from PIL import Image, ImageDraw
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from pthserve.images.spec import Spec

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
LIMIT = 50_000_000


@cache
def photo(name: str = "coffee") -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)())


def camera(name: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """A photo as a camera takes it, of any size: no sharper than its optics, and with a sensor's noise."""
    pixels = np.asarray(photo(name).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = np.random.default_rng(seed).normal(0, 3, (509, 511, 3)).round().astype(np.int16)
    for top, left in np.ndindex(-(-height // 509), -(-width // 511)):
        tile = pixels[top * 509 : (top + 1) * 509, left * 511 : (left + 1) * 511]
        tile += noise[: tile.shape[0], : tile.shape[1]]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:  # noqa: A002
    file = io.BytesIO()
    if frames := options.get("append_images"):
        options["append_images"] = [frame.copy() for frame in frames]
    image.copy().save(file, format, **options)  # a copy: Pillow leaves options of one format to the next
    return file.getvalue()


def reference(
    data: bytes, spec: Spec, upright: Callable[[Image.Image], Image.Image] | None = None
) -> np.ndarray:
    """What torchvision's transforms make of the Pillow image in `data`: uint8 (height, width, channels)."""
    steps: list[Any] = [transforms.CenterCrop(spec.crop)]
    if spec.resize is not None:
        steps.insert(0, transforms.Resize(spec.resize, InterpolationMode[spec.interpolation.upper()]))
    with warnings.catch_warnings(action="ignore"):
        image: Image.Image = Image.open(io.BytesIO(data))
        image = upright(image) if upright else image
        image = transforms.Compose(steps)(image.convert("L" if spec.channels == 1 else "RGB"))
    return np.asarray(image).reshape(spec.image_shape)


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe segment says YCCK."""
    data = bytearray(encoded(photo().convert("CMYK"), "JPEG"))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def bmp_rle(width: int, height: int, body: bytes, bits: int = 8) -> bytes:
    """A run-length-coded BMP, its palette a ramp."""
    palette = b"".join(bytes((level, level // 2, 255 - level, 0)) for level in range(1 << bits))
    offset = 54 + len(palette)
    header = struct.pack("<IHHI", offset + len(body), 0, 0, offset)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, 2 if bits == 4 else 1, len(body), 0, 0, 0, 0
    )
    return b"BM" + header + info + palette + body


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    width: int, height: int, before: bytes = b"", after: bytes = b"", pixels: bytes | None = None
) -> bytes:
    """A grey PNG, black unless `pixels` has its compressed rows, with chunks before and after these."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes((width + 1) * height)) if pixels is None else pixels
    chunks = png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", body) + after + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(*tags: tuple[int, int, int, int | bytes], body: bytes = b"") -> bytes:
    """A little-endian TIFF of (tag, type, count, value or array)."""
    entries, arrays = b"", b""
    start = 8 + 2 + 12 * len(tags) + 4
    for tag, kind, count, value in tags:
        entries += struct.pack(
            "<HHII", tag, kind, count, start + len(arrays) if isinstance(value, bytes) else value
        )
        arrays += value if isinstance(value, bytes) else b""
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + arrays + body


def _palette(transparency: int | bytes | None = None) -> bytes:
    options = {} if transparency is None else {"transparency": transparency}
    return encoded(photo().quantize(64), "PNG", **options)


def _turned(orientation: int, format: str, **options: Any) -> bytes:  # noqa: A002
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(), format, exif=exif, **options)


def turned(orientation: int) -> dict[str, bytes]:
    """The same photo in each format that can say its orientation."""
    return {name: _turned(orientation, name) for name in ("JPEG", "PNG", "WebP", "TIFF")}


def _rgb() -> Image.Image:
    return photo()


def _grey() -> Image.Image:
    return photo().convert("L")


def _alpha() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(_grey())
    return image


def _deep() -> Image.Image:
    return Image.fromarray(np.asarray(_grey()).astype(np.uint16) * 257)


def _boxed() -> Image.Image:
    image = photo().copy()
    ImageDraw.Draw(image).rectangle((10, 10, 90, 90), fill=(255, 0, 0))
    return image


def _animated(format: str, **options: Any) -> bytes:  # noqa: A002
    frames = [photo().rotate(angle) for angle in (90, 180)]
    return encoded(photo(), format, save_all=True, append_images=frames, **options)


def _runs() -> bytes:
    rows = np.asarray(photo().resize((90, 60)).quantize(256, dither=Image.Dither.NONE))[::-1]
    return b"".join(b"".join(bytes((1, level)) for level in row) + b"\0\0" for row in rows) + b"\0\1"


_FILES: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encoded(_rgb(), "JPEG"),
    "JPEG 4:4:4": lambda: encoded(_rgb(), "JPEG", subsampling=0),
    "JPEG 4:2:2": lambda: encoded(_rgb(), "JPEG", subsampling=1),
    "JPEG progressive": lambda: encoded(_rgb(), "JPEG", progressive=True),
    "JPEG grey": lambda: encoded(_grey(), "JPEG"),
    "JPEG CMYK": lambda: encoded(_rgb().convert("CMYK"), "JPEG"),
    "JPEG YCCK": ycck,
    "JPEG turned": lambda: _turned(6, "JPEG"),
    "MPO": lambda: _animated("MPO"),
    "PNG": lambda: encoded(_rgb(), "PNG"),
    "PNG 1 bit": lambda: encoded(_rgb().convert("1"), "PNG"),
    "PNG grey": lambda: encoded(_grey(), "PNG"),
    "PNG grey, alpha": lambda: encoded(_alpha().convert("LA"), "PNG"),
    "PNG grey, one level clear": lambda: encoded(_grey(), "PNG", transparency=17),
    "PNG 16 bit": lambda: encoded(_deep(), "PNG"),
    "PNG palette": _palette,
    "PNG palette, one entry clear": lambda: _palette(3),
    "PNG palette, some entries clear": lambda: _palette(bytes(range(0, 256, 8))),
    "PNG alpha": lambda: encoded(_alpha(), "PNG"),
    "PNG one colour clear": lambda: encoded(_boxed(), "PNG", transparency=(255, 0, 0)),
    "PNG animated": lambda: _animated("PNG"),
    "PNG animated, default image": lambda: _animated("PNG", default_image=True),
    "WebP": lambda: encoded(_rgb(), "WEBP"),
    "WebP lossless": lambda: encoded(_rgb().resize((150, 100)), "WEBP", lossless=True),
    "WebP alpha": lambda: encoded(_alpha(), "WEBP"),
    "WebP animated": lambda: _animated("WEBP"),
    "BMP": lambda: encoded(_rgb(), "BMP"),
    "BMP 1 bit": lambda: encoded(_rgb().convert("1"), "BMP"),
    "BMP grey": lambda: encoded(_grey(), "BMP"),
    "BMP palette": lambda: encoded(_rgb().quantize(16), "BMP"),
    "BMP alpha": lambda: encoded(_alpha(), "BMP"),
    "BMP run lengths": lambda: bmp_rle(90, 60, _runs()),
    "GIF": lambda: encoded(_rgb(), "GIF"),
    "GIF grey": lambda: encoded(_grey(), "GIF"),
    "GIF clear": lambda: encoded(_alpha(), "GIF"),
    "GIF animated": lambda: _animated("GIF"),
    "TIFF": lambda: encoded(_rgb(), "TIFF"),
    "TIFF 1 bit, group 4": lambda: encoded(_rgb().convert("1"), "TIFF", compression="group4"),
    "TIFF grey": lambda: encoded(_grey(), "TIFF"),
    "TIFF grey, alpha": lambda: encoded(_alpha().convert("LA"), "TIFF"),
    "TIFF palette": lambda: encoded(_rgb().quantize(64), "TIFF"),
    "TIFF alpha": lambda: encoded(_alpha(), "TIFF"),
    "TIFF CMYK": lambda: encoded(_rgb().convert("CMYK"), "TIFF"),
    "TIFF YCbCr": lambda: encoded(_rgb().convert("YCbCr"), "TIFF"),
    "TIFF LAB": lambda: encoded(_rgb().convert("LAB"), "TIFF"),
    "TIFF 16 bit": lambda: encoded(_deep(), "TIFF"),
    "TIFF 32 bit": lambda: encoded(_grey().convert("I"), "TIFF"),
    "TIFF float": lambda: encoded(_grey().convert("F"), "TIFF"),
    "TIFF LZW": lambda: encoded(_rgb(), "TIFF", compression="tiff_lzw"),
    "TIFF deflate": lambda: encoded(_rgb(), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF JPEG": lambda: encoded(_rgb(), "TIFF", compression="jpeg"),
    "TIFF many pages": lambda: _animated("TIFF"),
    "TIFF turned": lambda: _turned(6, "TIFF"),
    "BigTIFF": lambda: encoded(_rgb(), "TIFF", big_tiff=True),
}
KINDS = tuple(_FILES)
"""Every format and mode that Pillow writes, or that can be patched together."""


@cache
def file_of(kind: str) -> bytes:
    """A file of one of KINDS."""
    return _FILES[kind]()
