"""Files that are dear to decode: each allowed format at its limits, by what a client can choose in it."""

import gc
import io
import json
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from tests.images.pictures import bmp_rle, png_chunk, tiff

from pthserve.errors import BrokenImage, TooLarge
from pthserve.images.preprocess import pending
from pthserve.images.spec import Spec
from pthserve.serving import memory

BODY = 20 * 2**20
"""Bytes that a client may send: the default of `max_body`."""
LARGE = (8192, 6103)
"""Width and height of nearly 50 million pixels."""
MIDDLE = (5000, 4990)
"""Width and height of nearly 25 million pixels, for what takes long to encode."""
BITS = 8

WEBP_34_BYTES = bytes.fromhex("524946461a000000574542505650384c0e0000002ffebffa02071011fd0f4444ff03")
"""A lossless WebP of 16383 x 3051 pixels."""


def _flat(mode: str, size: tuple[int, int] = LARGE) -> Image.Image:
    return Image.new(mode, size, 1)


@cache
def _noise(mode: str, width: int, height: int, levels: int) -> Image.Image:
    """Noise of so many grey levels, of which a codec cannot make less."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    tile = np.random.default_rng(0).integers(0, levels, (509, width, bands), np.uint8) + np.uint8(100)
    pixels = np.concatenate([np.roll(tile, turn * 37, axis=1) for turn in range(-(-height // 509))])[:height]
    return Image.fromarray(pixels.squeeze() if bands == 1 else pixels, mode)


def _file(image: Image.Image, format: str, **options: Any) -> bytes:  # noqa: A002
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _noisy(mode: str, size: tuple[int, int], levels: int, format: str, **options: Any) -> bytes:  # noqa: A002
    return _file(_noise(mode, *size, levels), format, **options)


def many_scans(data: bytes, scans: int) -> bytes:
    """A progressive JPEG with scans of its own repeated, until there are so many."""
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def arithmetic(progressive: bool, size: tuple[int, int] = LARGE) -> bytes:
    """An arithmetic-coded JPEG of noise: any bytes decode to something."""
    data = _file(Image.new("RGB", size), "JPEG", subsampling=0, progressive=progressive)
    start = data.index(b"\xff\xda")
    old, new = (b"\xff\xc2", b"\xff\xca") if progressive else (b"\xff\xc0", b"\xff\xc9")
    noise = np.random.default_rng(0).integers(0, 255, BODY - 2 * start, np.uint8).tobytes()
    (length,) = struct.unpack(">H", data[start + 2 : start + 4])
    return data[: start + 2 + length].replace(old, new, 1) + noise + b"\xff\xd9"


def png(
    mode: int, bits: int, channels: int, size: tuple[int, int] = LARGE, *, interlaced: bool = False
) -> bytes:
    """A PNG of one level; mode: the colour type of its header."""
    width, height = size
    passes = (
        [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        if interlaced
        else [(0, 0, 1, 1)]
    )
    packer = zlib.compressobj(1)
    body = b""
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        row = b"\x04" + bytes((columns * bits * channels + 7) // 8)  # Paeth's filter, the dearest
        for _ in range(rows // 64):
            body += packer.compress(row * 64)
        body += packer.compress(row * (rows % 64))
    body += packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, mode, 0, 0, interlaced)
    palette = png_chunk(b"PLTE", bytes(range(256)) * 3) if mode == 3 else b""
    chunks = png_chunk(b"IHDR", header) + palette + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _tiff(shape: tuple[int, ...], dtype: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros(shape, dtype), metadata=None, **options)
    return file.getvalue()


def _animated_webp(size: tuple[int, int]) -> bytes:
    frames = [Image.new("RGBA", size, (9, 9, 9, level)) for level in (128, 64)]
    return _file(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, method=0)


def _bmp(size: tuple[int, int], bits: int) -> bytes:
    row = (size[0] * bits + 31) // 32 * 4
    palette = bytes(4 << bits) if bits <= BITS else b""
    offset = 54 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, *size, 1, bits, 0, row * size[1], 0, 0, 0, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", offset + row * size[1], 0, 0, offset)
        + info
        + palette
        + bytes(row * size[1])
    )


def _rle(width: int, height: int) -> bytes:
    """A run-length-coded BMP of single pixels, which take Pillow the longest."""
    return bmp_rle(width, height, (b"\1\5" * width + b"\0\0") * height + b"\0\1")


def _raw_strips(rows: int = 1, strips: int = 5000) -> bytes:
    """A raw grey TIFF of 1000 rows, whose strips all begin at the start of a file as large as it may be."""
    tags = ((256, 4, 1, 1000), (257, 4, 1, max(1000, strips * (rows == 1))), (258, 3, 1, 8), (259, 3, 1, 1))
    places = (273, 4, strips, struct.pack("<I", 8) * strips)
    return tiff(*tags, (262, 3, 1, 1), places, (277, 3, 1, 1), (278, 4, 1, rows), body=bytes(BODY - 2**19))


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


LW, LH = LARGE
_FILES: dict[str, Callable[[], bytes]] = {
    "JPEG 4:2:0": lambda: _file(_flat("RGB"), "JPEG"),
    "JPEG 4:4:4": lambda: _file(_flat("RGB"), "JPEG", subsampling=0),
    "JPEG 4:4:4, turned": lambda: _file(_flat("RGB"), "JPEG", subsampling=0, exif=_exif()),
    "JPEG 4:4:4, noise": lambda: _noisy("RGB", LARGE, 80, "JPEG", subsampling=0, quality=60),
    "JPEG grey": lambda: _file(_flat("L"), "JPEG"),
    "JPEG CMYK": lambda: _file(_flat("CMYK"), "JPEG"),
    "JPEG progressive 4:2:0": lambda: _file(_flat("RGB"), "JPEG", progressive=True),
    "JPEG progressive 4:4:4": lambda: _file(_flat("RGB"), "JPEG", progressive=True, subsampling=0),
    "JPEG progressive, noise": lambda: _noisy(
        "RGB", LARGE, 80, "JPEG", progressive=True, subsampling=0, quality=60
    ),
    "JPEG progressive, grey": lambda: _file(_flat("L"), "JPEG", progressive=True),
    "JPEG progressive, CMYK": lambda: _file(_flat("CMYK"), "JPEG", progressive=True),
    "JPEG progressive, 30 scans": lambda: many_scans(
        _file(_flat("RGB"), "JPEG", progressive=True, subsampling=0), 30
    ),
    "JPEG progressive, noise, 30 scans": lambda: many_scans(
        _noisy("RGB", LARGE, 50, "JPEG", progressive=True, subsampling=0, quality=60), 30
    ),
    "JPEG arithmetic": lambda: arithmetic(False),
    "JPEG arithmetic, progressive": lambda: arithmetic(True),
    "PNG 1 bit": lambda: png(0, 1, 1),
    "PNG grey": lambda: png(0, 8, 1),
    "PNG 16 bit": lambda: png(0, 16, 1),
    "PNG 16 bit, interlaced": lambda: png(0, 16, 1, interlaced=True),
    "PNG RGB": lambda: png(2, 8, 3),
    "PNG RGB, noise": lambda: _noisy("RGB", (2800, 2400), 255, "PNG", compress_level=1),
    "PNG RGB, 3 levels": lambda: _noisy("RGB", (4500, 4400), 3, "PNG", compress_level=3),
    "PNG RGB, 16 bit, interlaced": lambda: png(2, 16, 3, interlaced=True),
    "PNG palette, interlaced": lambda: png(3, 8, 1, interlaced=True),
    "PNG grey, alpha": lambda: png(4, 8, 2),
    "PNG alpha": lambda: png(6, 8, 4),
    "PNG alpha, 16 bit, interlaced": lambda: png(6, 16, 4, interlaced=True),
    "WebP lossless, 34 bytes": lambda: WEBP_34_BYTES,
    "WebP lossless": lambda: _file(_flat("RGB", MIDDLE), "WEBP", lossless=True, method=0),
    "WebP lossless, noise": lambda: _noisy("RGB", MIDDLE, 3, "WEBP", lossless=True, method=0, quality=0),
    "WebP lossless, alpha": lambda: _file(
        Image.new("RGBA", MIDDLE, (1, 2, 3, 99)), "WEBP", lossless=True, method=0
    ),
    "WebP lossy": lambda: _file(_flat("RGB", MIDDLE), "WEBP", method=0),
    "WebP lossy, noise": lambda: _noisy("RGB", MIDDLE, 80, "WEBP", method=0, quality=80),
    "WebP lossy, alpha": lambda: _noisy("RGBA", MIDDLE, 20, "WEBP", method=0, quality=60),
    "WebP lossy, alpha, turned": lambda: _file(
        Image.new("RGBA", MIDDLE, (1, 2, 3, 99)), "WEBP", method=0, exif=_exif()
    ),
    "WebP animated": lambda: _animated_webp(MIDDLE),
    "BMP 1 bit": lambda: _bmp(LARGE, 1),
    "BMP 4 bit": lambda: _bmp((6400, 6400), 4),
    "BMP palette": lambda: _bmp((4500, 4500), 8),
    "BMP 16 bit": lambda: _bmp((3200, 3200), 16),
    "BMP 24 bit": lambda: _bmp((2600, 2600), 24),
    "BMP 32 bit": lambda: _bmp((2200, 2200), 32),
    "BMP run lengths": lambda: bmp_rle(2000, 2000, (b"\xc8\5" * 10 + b"\0\0") * 2000 + b"\0\1"),
    "BMP run lengths, in many pieces": lambda: _rle(2000, 2000),
    "GIF": lambda: _file(_flat("P"), "GIF"),
    "GIF noise": lambda: _noisy("L", (3900, 3900), 155, "GIF", interlace=1),
    "GIF clear": lambda: _file(_flat("P"), "GIF", transparency=1),
    "GIF animated": lambda: _file(
        _flat("P"), "GIF", save_all=True, append_images=[Image.new("P", LARGE, 2)], disposal=2
    ),
    "TIFF 1 bit, group 3": lambda: _file(_flat("1"), "TIFF", compression="group3"),
    "TIFF 1 bit, group 4": lambda: _file(_flat("1"), "TIFF", compression="group4"),
    "TIFF LZW": lambda: _file(_flat("RGB"), "TIFF", compression="tiff_lzw"),
    "TIFF LZW, noise": lambda: _noisy("RGB", (2800, 1900), 155, "TIFF", compression="tiff_lzw"),
    "TIFF LZW, one strip": lambda: _file(
        _flat("RGB"), "TIFF", compression="tiff_lzw", tiffinfo={278: LARGE[1]}
    ),
    "TIFF packbits": lambda: _file(_flat("RGB", (3000, 2200)), "TIFF", compression="packbits"),
    "TIFF deflate": lambda: _file(_flat("RGB"), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF lzma": lambda: _file(_flat("RGB"), "TIFF", compression="lzma"),
    "TIFF zstd": lambda: _file(_flat("RGB"), "TIFF", compression="zstd"),
    "TIFF JPEG": lambda: _file(_flat("RGB"), "TIFF", compression="jpeg"),
    "TIFF CMYK": lambda: _file(_flat("CMYK"), "TIFF", compression="tiff_lzw"),
    "TIFF YCbCr": lambda: _file(_flat("RGB").convert("YCbCr"), "TIFF", compression="tiff_lzw"),
    "TIFF LAB": lambda: _file(_flat("RGB").convert("LAB"), "TIFF", compression="tiff_lzw"),
    "TIFF float": lambda: _file(_flat("F"), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF 32 bit": lambda: _file(_flat("I"), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF 16 bit, one strip": lambda: _tiff((LH, LW), np.uint16, compression="zlib", rowsperstrip=LH),
    "TIFF RGB, 16 bit, one strip": lambda: _tiff(
        (LH, LW, 3), np.uint16, photometric="rgb", compression="zlib", rowsperstrip=LH
    ),
    "TIFF alpha, 16 bit, one strip": lambda: _tiff(
        (LH, LW, 4), np.uint16, photometric="rgb", compression="zlib", rowsperstrip=LH, extrasamples=[2]
    ),
    "TIFF alpha, one tile": lambda: _tiff(
        (6096, 8192, 4), np.uint8, photometric="rgb", compression="zlib", tile=(6096, 8192), extrasamples=[2]
    ),
    "TIFF planar": lambda: _tiff(
        (3, LH, LW), np.uint8, photometric="rgb", compression="zlib", planarconfig="separate"
    ),
    "TIFF planar, small tiles": lambda: _tiff(
        (3, LH, LW), np.uint8, photometric="rgb", compression="zlib", planarconfig="separate", tile=(128, 128)
    ),
    "TIFF RGB, tiles of 16": lambda: _tiff(
        (LH // 3, LW // 3, 3), np.uint8, photometric="rgb", compression="zlib", tile=(16, 16)
    ),
    "TIFF of few pixels, in tiles of many": lambda: tiff(
        *(
            (256, 4, 1, 1),
            (257, 4, 1, 60_000),
            (258, 3, 1, 8),
            (259, 3, 1, 8),
            (262, 3, 1, 1),
            (277, 3, 1, 1),
        ),
        *((322, 4, 1, 16_000), (323, 4, 1, 16), (324, 4, 3750, bytes(4 * 3750))),
        *((325, 4, 3750, bytes(4 * 3750)),),
    ),
    "TIFF of one tile that is larger than memory": lambda: tiff(
        *((256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)),
        *((322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 8), (325, 4, 1, 8)),
    ),
    "TIFF raw, each strip the same bytes": _raw_strips,
    "TIFF raw, its rows again and again": lambda: _raw_strips(rows=999, strips=60_000),
    "TIFF turned": lambda: _file(_flat("RGB"), "TIFF", compression="tiff_lzw", exif=_exif()),
}
KINDS = tuple(_FILES)


def costly(kind: str) -> bytes:
    """A file of one of KINDS."""
    return _FILES[kind]()


# What follows measures them, in a process of its own: `python -m tests.images.costly [FORMAT]`.

SPECS = {"RGB": Spec(), "L, upright": Spec(mean=(0.5,), std=(0.5,), exif=True)}
LIMIT = 50_000_000


def _kib(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0])


def measured(data: bytes, spec: Spec) -> dict[str, object]:
    """Bytes and seconds that `data` took from its header to the crop, beside those that its cost says."""
    gc.collect()
    memory.give_back()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the highest memory use is counted again
    before, began = _kib("VmRSS"), time.process_time()
    try:
        image = pending(data, spec, max_pixels=LIMIT)
        size, cost = image.size, image.cost
        image.pixels()
        del image
    except (BrokenImage, TooLarge) as error:  # Pillow converts no LAB
        return {"refused": str(error), "seconds": time.process_time() - began}
    return {
        "pixels": size[0] * size[1],
        "length": len(data),
        "memory": (_kib("VmHWM") - before) * 1024,
        "memory_at_most": cost.memory,
        "seconds": time.process_time() - began,
        "seconds_at_most": cost.seconds,
    }


def main(format: str = "") -> None:  # noqa: A002
    """Print what this machine takes for an easy file, and a line of JSON for each file and spec."""
    warnings.simplefilter("ignore")
    memory.configure()
    easy = _file(_flat("RGB"), "JPEG", subsampling=0)
    print(json.dumps(min(float(str(measured(easy, Spec())["seconds"])) for _ in range(2))), flush=True)
    for kind in KINDS:
        if kind.startswith(format):
            data = costly(kind)
            for name, spec in SPECS.items():
                print(json.dumps({"kind": kind, "spec": name, **measured(data, spec)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
