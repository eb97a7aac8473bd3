"""Preprocessing as torchvision's detectors have it: normalised first, then resized, and not rounded."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from pthserve.errors import UnsupportedImage
from pthserve.images.preprocess import crop, crop_sized, pending
from pthserve.images.spec import Spec

from ..linear import noise, png

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
DETECTOR = Spec.uncropped(160, longest=266, antialias=False, rounded=False)
SIZES = [(75, 100), (100, 75), (400, 300), (1, 1), (10, 240), (333, 777)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fixed", [None, (120, 90)])
def test_pixels_are_those_of_torchvision_s_transform(
    size: tuple[int, int], fixed: tuple[int, int] | None
) -> None:
    transform = GeneralizedRCNNTransform(160, 266, MEAN, STD, fixed_size=fixed)
    spec = DETECTOR
    if fixed is not None:
        spec = Spec(resize=fixed[::-1], crop=fixed[::-1], antialias=False, rounded=False)
    pixels = noise(3, size[1], size[0])
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous() / 255
    expected = transform.resize(transform.normalize(tensor))[0].numpy()
    found = crop(png(pixels), spec, max_pixels=2**20)
    assert found.dtype == np.float32
    # PyTorch has two kernels, which round a coordinate differently in its last bit.
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert spec.takes(found.shape)


def test_an_image_too_narrow_for_the_model_is_refused() -> None:
    for size in ((1, 20_000), (20_000, 1)):
        with pytest.raises(UnsupportedImage, match="less narrow"):
            crop(png(noise(1, *size)), DETECTOR, max_pixels=2**20)


def test_the_size_of_an_image_is_that_of_what_the_model_was_given() -> None:
    file = io.BytesIO()
    image = Image.fromarray(noise(1, 60, 90))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(file, "JPEG", exif=exif)
    for turns, size in ((False, (90, 60)), (True, (60, 90))):
        spec = Spec.uncropped(160, longest=266, antialias=False, rounded=False, exif=turns)
        one = pending(file.getvalue(), spec, max_pixels=2**20)
        pixels = one.pixels()
        assert one.upright == size
        assert (pixels.shape[2] > pixels.shape[1]) == (size[0] > size[1])
        ours, whole = crop_sized(Image.open(file), spec, max_pixels=2**20)
        assert whole == size
        np.testing.assert_array_equal(ours, pixels)


def test_memory_follows_from_what_an_image_is_resized_to_and_not_from_its_sides() -> None:
    wide = pending(
        png(noise(1, 2, 100_000)),
        Spec(resize=(300, 300), crop=(300, 300), antialias=False, rounded=False),
        max_pixels=2**20,
    )
    assert wide.cost.memory < 2**26
    assert wide.pixels().shape == (3, 300, 300)


def test_a_spec_that_crops_nothing_reads_back_from_a_card_and_from_json() -> None:
    assert DETECTOR.to_card() == ("{resize: 160, crop: null, longest: 266, antialias: false, rounded: false}")
    assert Spec.from_dict(DETECTOR.to_dict()) == DETECTOR
    assert "whole" not in Spec().to_dict()
