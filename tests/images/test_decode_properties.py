"""What holds for any image: exact is torchvision's, fast is near it, and bad bytes are the client's fault."""

import random
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.images.pictures import (
    KINDS,
    LIMIT,
    PHOTOS,
    bmp_rle,
    camera,
    encoded,
    file_of,
    photo,
    png,
    png_chunk,
    reference,
    tiff,
)

from pthserve.engines.torch_engine import TorchEngine
from pthserve.errors import BrokenImage, RequestError, TooLarge, UnsupportedImage
from pthserve.images.preprocess import crop
from pthserve.images.spec import Spec
from pthserve.tasks.classification import CLASSIFICATION, softmax

# pytest undoes what the service's import does: to ignore what Pillow says about broken metadata.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

sides = st.integers(1, 400)
modes = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]
encodings = {
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    "JPEG": {"L", "RGB", "CMYK"},
    "TIFF": {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"},
    "WEBP": {"RGB", "RGBA"},
    "BMP": {"1", "L", "P", "RGB"},
    "GIF": {"1", "L", "P"},
}
options: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "JPEG": st.fixed_dictionaries(
        {"quality": st.integers(30, 98), "subsampling": st.integers(0, 2), "progressive": st.booleans()}
    ),
    "TIFF": st.sampled_from([{}, {"compression": "tiff_lzw"}, {"compression": "packbits"}]),
}


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """A part of a photo, of any size, mode and format."""
    format = draw(st.sampled_from(sorted(encodings)))  # noqa: A001
    image = photo(draw(st.sampled_from(PHOTOS))).crop((20, 20, 20 + draw(sides), 20 + draw(sides)))
    mode = draw(st.sampled_from(sorted(encodings[format])))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    return encoded(image.convert(mode), format, **draw(options.get(format, st.just({}))))


specs = st.builds(
    Spec,
    resize=st.none() | st.sampled_from([64, 128, 256]) | sides | st.tuples(sides, sides),
    crop=st.tuples(sides, sides),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]),
    mean=st.sampled_from([(0.5,), (0.5, 0.5, 0.5)]),
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(images(), specs)
def test_exact_is_torchvision_on_pillow(data: bytes, spec: Spec) -> None:
    try:
        found = crop(data, spec, max_pixels=LIMIT)
    except TooLarge:  # as a sliver is, once its shorter side is resized
        return
    assert (found == reference(data, spec)).all()


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    name=st.sampled_from(PHOTOS),
    scale=st.floats(1, 6),
    stretch=st.floats(0.9, 1.1),
    options=options["JPEG"],
    mode=st.sampled_from(["RGB", "RGB", "L"]),
    resize=st.sampled_from([64, 128, 232, 256, 342]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_fast_is_within_its_bound_on_photos(
    name: str,
    scale: float,
    stretch: float,
    options: dict[str, Any],
    mode: str,
    resize: int,
    interpolation: Any,
) -> None:
    width, height = int(photo(name).width * scale * stretch), int(photo(name).height * scale)
    data = encoded(camera(name, width, height).convert(mode), "JPEG", **options)
    spec = Spec(resize=resize, crop=(resize * 7 // 8, resize * 7 // 8), interpolation=interpolation)
    exact = crop(data, spec, max_pixels=LIMIT).astype(int)
    fast = crop(data, spec, decode="fast", max_pixels=LIMIT)
    assert np.abs(fast - exact).mean() < 0.3


@pytest.mark.slow
def test_fast_leaves_a_real_model_s_top_class_where_its_margin_is_clear(imagenet: Path) -> None:
    module = EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(torch.load(imagenet / "efficientnet-lite0.pth", weights_only=True))
    engine = TorchEngine(module.eval(), Spec(), threads=2)
    sizes = [(1600, 1200), (2448, 3264), (4000, 3000), (4032, 3024), (1477, 1831)]
    photos = [encoded(camera(name, *size), "JPEG", quality=85) for name in PHOTOS for size in sizes]
    exact, fast = (
        np.stack([crop(data, Spec(), decode=decode, max_pixels=LIMIT) for data in photos])
        for decode in ("exact", "fast")
    )
    found = CLASSIFICATION.agree(softmax(engine(fast)), softmax(engine(exact)), 0.05)
    assert found.differences.max() <= 0.05
    assert found.kept is not None
    assert found.kept.all()


@settings(max_examples=200, derandomize=True, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32), decode=st.sampled_from(["exact", "fast"]))
def test_a_mangled_image_is_read_or_refused_and_nothing_else(kind: str, seed: int, decode: Any) -> None:
    mangle = random.Random(seed)
    data = bytearray(file_of(kind))
    for _ in range(mangle.choice((1, 3, 30))):
        near = mangle.choice((40, 400, len(data)))
        data[mangle.randrange(min(near, len(data)))] = mangle.choice((0, 1, 255, mangle.randrange(256)))
    if mangle.random() < 0.3:
        del data[mangle.randrange(len(data)) :]
    spec = Spec(exif=True)
    with suppress(RequestError):
        assert crop(bytes(data), spec, decode=decode, max_pixels=2_000_000).shape == spec.image_shape


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_cut_in_half_is_refused_or_what_pillow_makes_of_it(kind: str) -> None:
    data = file_of(kind)[: len(file_of(kind)) // 2]
    try:
        found = crop(data, Spec(), max_pixels=LIMIT)
    except (BrokenImage, TooLarge):
        return
    assert (found == reference(data, Spec())).all()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"%PDF-1.7\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"RIFF\0\0\0\0WAVEfmt ",
        encoded(photo().resize((9, 9)), "PPM"),
        encoded(photo().resize((32, 32)), "ICO"),
        encoded(photo().resize((9, 9)), "TGA"),
        encoded(photo().resize((9, 9)), "JPEG2000"),
        encoded(photo().resize((9, 9)), "AVIF"),
    ],
    ids=lambda data: data[:4],
)
def test_what_is_not_of_an_allowed_format_is_refused_with_their_names(data: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="send one of JPEG, PNG, WebP, BMP, GIF, TIFF"):
        crop(data, Spec(), max_pixels=LIMIT)


HUGE = {
    "JPEG": file_of("JPEG").replace(struct.pack(">HH", 400, 600), b"\xff\xff\xff\xff", 1)[:700],
    "PNG": png(60_000, 60_000, pixels=b""),
    "WebP": file_of("WebP alpha")[:24] + b"\xff\x3f\0\xff\x3f\0" + file_of("WebP alpha")[30:60],
    "BMP": b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "GIF": file_of("GIF")[:6] + b"\xff\xff\xff\xff" + file_of("GIF")[10:2000],
    "TIFF": tiff(
        *((256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)),
        *((273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 60_000), (279, 4, 1, 8)),
    ),
}


@pytest.mark.parametrize("format", HUGE)
def test_pixels_are_counted_before_they_are_decoded(format: str) -> None:  # noqa: A002
    with pytest.raises(TooLarge):
        crop(HUGE[format], Spec(), max_pixels=LIMIT)


def test_the_pixel_limit_is_that_of_the_call() -> None:
    assert crop(file_of("PNG"), Spec(), max_pixels=600 * 400).shape == (224, 224, 3)
    with pytest.raises(TooLarge, match="600 x 400 pixels; the limit is 239999"):
        crop(file_of("PNG"), Spec(), max_pixels=600 * 400 - 1)


def _jpeg_with(segment: bytes, times: int) -> bytes:
    data = file_of("JPEG")
    return data[:2] + segment * times + data[2:]


def _jpeg_of_scans(times: int) -> bytes:
    data = file_of("JPEG progressive")
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * times + data[-2:]


def _gif_with_comment(blocks: int) -> bytes:
    data = file_of("GIF grey")
    first = data.index(b",", 13 + 768)
    return data[:first] + b"!\xfe" + (b"\xff" + bytes(255)) * blocks + b"\0" + data[first:]


GREY_TAGS = ((256, 4, 1, 9), (257, 4, 1, 9), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1))
BOMBS = {
    "a million JPEG comments": lambda: _jpeg_with(b"\xff\xfe\0\2", 1_000_000),
    "EXIF in a thousand parts": lambda: _jpeg_with(b"\xff\xe1\x03\xf0Exif\0\0" + bytes(1000), 1000),
    "JPEG of a thousand scans": lambda: _jpeg_of_scans(1000),
    "PNG of empty pieces": lambda: png(9, 9).replace(b"\0\0\0", png_chunk(b"IDAT", b"") * 400_000, 1),
    "a thousand profiles before the pixels": lambda: png(9, 9, before=png_chunk(b"iCCP", b"a\0\0x") * 1000),
    "a thousand profiles after the pixels": lambda: png(9, 9, after=png_chunk(b"iCCP", b"a\0\0x") * 1000),
    "a GIF comment of a megabyte": lambda: _gif_with_comment(4000),
    "a BMP decoded in Python": lambda: bmp_rle(40_000_000, 1, b"\1\0\0\0"),
    "a TIFF of a million strips": lambda: tiff(*GREY_TAGS, (273, 4, 10**6, bytes(4 * 10**6)), (278, 4, 1, 1)),
    "a TIFF of ten thousand tags": lambda: tiff(*GREY_TAGS, *((tag, 4, 1, 0) for tag in range(300, 10_300))),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_that_costs_more_than_its_pixels_is_refused(bomb: str) -> None:
    with pytest.raises((TooLarge, BrokenImage)):
        crop(BOMBS[bomb](), Spec(), max_pixels=LIMIT)


def test_a_jpeg_s_own_scans_and_segments_are_welcome() -> None:
    icc = b"".join(
        b"\xff\xe2" + struct.pack(">H", 60_000) + b"ICC_PROFILE\0\1\1" + bytes(59_984) for _ in range(40)
    )
    data = _jpeg_with(icc, 1)
    assert (crop(data, Spec(), max_pixels=LIMIT) == crop(file_of("JPEG"), Spec(), max_pixels=LIMIT)).all()


@pytest.mark.parametrize("resize", [None, 256, (64, 64)])
def test_an_image_without_pixels_is_broken(resize: int | tuple[int, int] | None) -> None:
    frame = b"\x10\x00\x00\x9d\x01\x2a" + bytes(4)  # a key frame of 0 x 0 pixels: RFC 6386, 9.1
    chunk = b"VP8 " + len(frame).to_bytes(4, "little") + frame
    data = b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk
    with pytest.raises(BrokenImage, match="its header says 0 x 0 pixels"):
        crop(data, Spec(resize=resize), max_pixels=2**20)


def test_the_reason_is_said_in_words() -> None:
    data = file_of("JPEG")
    with pytest.raises(BrokenImage, match="the JPEG image is broken: image file is truncated"):
        crop(data[: len(data) // 2], Spec(), max_pixels=LIMIT)
