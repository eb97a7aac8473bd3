"""Bytes become what the model was trained on: torchvision's numbers, or nearly and in less time."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps
from tests.images.pictures import KINDS, LIMIT, camera, encoded, file_of, photo, reference, turned
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from pthserve.errors import TooLarge, UnsupportedImage
from pthserve.images.preprocess import crop, crop_pixels, normalise, pending_pixels
from pthserve.images.spec import Spec

GREY = Spec(mean=(0.5,), std=(0.5,))


def exact(data: bytes, spec: Spec) -> np.ndarray:
    return crop(data, spec, max_pixels=LIMIT)


def off(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference in grey levels."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_and_mode_is_as_torchvision_has_it(kind: str) -> None:
    data = file_of(kind)
    assert (exact(data, Spec()) == reference(data, Spec())).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "TIFF LAB"])  # Pillow cannot make it grey
def test_every_format_and_mode_becomes_grey_where_the_model_is(kind: str) -> None:
    data = file_of(kind)
    assert (exact(data, GREY) == reference(data, GREY)).all()


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("size", [(600, 400), (400, 600), (375, 500), (90, 200), (512, 512), (601, 333)])
def test_sizes_and_filters_are_as_torchvision_has_them(interpolation: Any, size: tuple[int, int]) -> None:
    data = encoded(photo().resize(size), "BMP")
    for resize in (256, 232, (100, 300), None):
        spec = Spec(resize=resize, interpolation=interpolation)
        assert (exact(data, spec) == reference(data, spec)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (300, 1), (2, 3), (1, 5000)])
def test_tiny_images_and_crops_beyond_the_image_are_as_torchvision_has_them(size: tuple[int, int]) -> None:
    data = encoded(photo().resize(size), "PNG")
    for resize in (None, 1, 24, (24, 24)):
        spec = Spec(resize=resize, crop=(20, 33))
        assert (exact(data, spec) == reference(data, spec)).all()


def test_exif_orientation_is_left_alone_by_default() -> None:
    for data in turned(6).values():
        assert (exact(data, Spec()) == reference(data, Spec())).all()


@pytest.mark.slow
@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("antialias", [True, False])
def test_bgr_is_the_same_image_with_blue_first(decode: Any, antialias: bool) -> None:
    rgb = Spec(antialias=antialias)
    bgr = replace(rgb, channel_order="bgr")
    for data in (encoded(camera("chelsea", 1600, 1200), "JPEG"), file_of("PNG alpha")):
        found = crop(data, bgr, decode=decode, max_pixels=LIMIT)
        assert found.flags.c_contiguous
        assert (found == crop(data, rgb, decode=decode, max_pixels=LIMIT)[..., ::-1]).all()
    pixels = np.asarray(photo())
    assert (crop_pixels(pixels, bgr) == crop_pixels(pixels, rgb)[..., ::-1]).all()
    assert pending_pixels(pixels, bgr).cost.memory > pending_pixels(pixels, rgb).cost.memory


def test_bgr_is_what_opencv_and_a_mean_in_its_order_give() -> None:
    """Caffe's models: values of 0 to 255, blue first, less one mean a channel."""
    mean = (103.939, 116.779, 123.68)
    spec = Spec(
        channel_order="bgr",
        mean=tuple(value / 255 for value in mean),
        std=(1 / 255,) * 3,
    )
    image = reference(file_of("PNG"), Spec())[..., ::-1].astype(np.float32) - np.array(mean, np.float32)
    found = normalise(exact(file_of("PNG"), spec)[None], spec)[0]
    assert np.abs(found - image.transpose(2, 0, 1)).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_when_the_spec_says_so(orientation: int) -> None:
    spec = Spec(exif=True, resize=(150, 120), crop=(140, 100))
    for data in turned(orientation).values():
        assert (exact(data, spec) == reference(data, spec, upright=ImageOps.exif_transpose)).all()


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(600, 400), (123, 457), (3, 2)])
@pytest.mark.parametrize("resize", [256, 60, (70, 300), None])
def test_antialias_false_is_as_torchvision_has_it_on_tensors(
    interpolation: Any, size: tuple[int, int], resize: int | tuple[int, int] | None
) -> None:
    spec = Spec(resize=resize, crop=(64, 48), interpolation=interpolation, antialias=False)
    steps: list[Any] = [transforms.PILToTensor(), transforms.CenterCrop(spec.crop)]
    if resize is not None:
        steps.insert(1, transforms.Resize(resize, InterpolationMode[interpolation.upper()], antialias=False))
    image = photo().resize(size)
    expected = transforms.Compose(steps)(image).permute(1, 2, 0).numpy()
    found = exact(encoded(image, "PNG"), spec)
    assert np.abs(found.astype(int) - expected).max() <= 1  # a tie may fall either way
    assert off(found, expected) < 0.02


def test_normalise_is_to_tensor_and_normalize() -> None:
    images = np.stack([exact(file_of(kind), Spec()) for kind in ("JPEG", "PNG palette")])
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(Spec().mean, Spec().std)])
    expected = torch.stack([steps(Image.fromarray(image)) for image in images]).numpy()
    found = normalise(images, Spec())
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.abs(found - expected).max() <= 1e-6


def test_normalise_of_grey_images_keeps_one_channel() -> None:
    assert normalise(np.full((2, 4, 5, 1), 255, np.uint8), GREY).tolist() == np.ones((2, 1, 4, 5)).tolist()


@pytest.mark.parametrize("spec", [Spec(), GREY, Spec(crop=(300, 300)), Spec(antialias=False)])
def test_pixels_are_cropped_as_the_file_of_them_is(spec: Spec) -> None:
    assert (crop_pixels(np.asarray(photo()), spec) == exact(encoded(photo(), "PNG"), spec)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "spec"),
    [
        ((4000, 3000), Spec()),
        ((2448, 3264), Spec(interpolation="bicubic")),
        ((2001, 1703), Spec(resize=(256, 300))),
        ((1921, 1601), GREY),
    ],
)
def test_fast_is_near_exact_on_large_photos(size: tuple[int, int], spec: Spec) -> None:
    data = encoded(camera("chelsea", *size), "JPEG", quality=90)
    assert 0 < off(crop(data, spec, decode="fast", max_pixels=LIMIT), exact(data, spec)) < 0.3


@pytest.mark.parametrize("orientation", range(2, 9))
def test_fast_turns_a_photo_upright_to_the_pixel(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(camera("chelsea", 1627, 1203), "JPEG", exif=exif)  # odd: half a pixel stands over
    spec = Spec(exif=True, resize=128, crop=(97, 112))
    assert off(crop(data, spec, decode="fast", max_pixels=LIMIT), exact(data, spec)) < 0.3


@pytest.mark.parametrize("interpolation", ["nearest", "box"])
def test_fast_is_exact_where_a_filter_has_edges(interpolation: Any) -> None:
    data = encoded(camera("coffee", 1600, 1200), "JPEG")
    spec = Spec(interpolation=interpolation)
    assert (crop(data, spec, decode="fast", max_pixels=LIMIT) == exact(data, spec)).all()


def test_an_image_that_would_be_too_large_once_resized_is_refused() -> None:
    data = encoded(Image.new("L", (1, 60_000)), "PNG")
    with pytest.raises(
        TooLarge, match=r"1 x 60000 pixels, which .* would resize to 232 x 13920000; the limit"
    ):
        exact(data, Spec(resize=232))


@pytest.mark.slow
def test_threads_decode_at_once_and_change_nothing_of_pillow_s() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK)
    jobs = [(file_of(kind), Spec(exif=exif)) for kind in KINDS for exif in (True, False)]
    alone = [exact(*job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(exact, *zip(*jobs, strict=True)))
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK)


def test_preprocessing_imports_no_torch() -> None:
    code = "import sys, pthserve.images.preprocess; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


LETTERBOX = Spec(resize=(96, 128), crop=(96, 128), antialias=False, pad=114)


@pytest.mark.parametrize(
    "size", [(200, 100), (100, 200), (128, 96), (40, 30), (333, 251), (1600, 1200), (97, 9)]
)
def test_a_letterbox_keeps_the_shape_and_pads_both_sides(size: tuple[int, int]) -> None:
    """As Ultralytics' `LetterBox`, whose resize is OpenCV's bilinear one: from 2 x 2 pixels a point."""
    image = photo().resize(size)
    scale = min(96 / size[1], 128 / size[0])
    wide, high = round(size[0] * scale), round(size[1] * scale)
    values = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float()
    inside = (
        torch.nn.functional.interpolate(values, (high, wide), mode="bilinear").round()[0].permute(1, 2, 0)
    )
    left, right = round((128 - wide) / 2 - 0.1), round((128 - wide) / 2 + 0.1)
    top, bottom = round((96 - high) / 2 - 0.1), round((96 - high) / 2 + 0.1)
    expected = np.pad(inside.numpy(), ((top, bottom), (left, right), (0, 0)), constant_values=114)
    found = exact(encoded(image, "PNG"), LETTERBOX)
    assert found.shape == (96, 128, 3)
    assert np.abs(found - expected).max() <= 1
    assert off(found, expected) < 0.01


def test_places_of_a_letterbox_are_places_of_the_image() -> None:
    assert LETTERBOX.view(200, 100) == (0.0, -25.0, 200.0, 150.0)
    assert LETTERBOX.view(128, 96) == (0.0, 0.0, 128.0, 96.0)
    assert Spec(resize=(96, 128), crop=(96, 128)).view(500, 20) == (0.0, 0.0, 500, 20)


def test_an_image_too_narrow_for_a_letterbox_is_refused() -> None:
    with pytest.raises(UnsupportedImage, match="less narrow"):
        exact(encoded(photo().resize((1, 1000)), "PNG"), LETTERBOX)
