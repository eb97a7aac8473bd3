"""Torchvision's presets: what an image goes through before an architecture of its own sees it."""

import io
from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torchvision import models

from pthserve.images.preprocess import crop_image, normalise
from pthserve.planning import crops
from pthserve.zoos import torchvision
from pthserve.zoos.torchvision import TORCHVISION

from ..linear import noise

VARIED: tuple[str, ...] = (
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b3",
    "efficientnet_v2_l",
    "swin_t",
    "swin_v2_b",
)
VARIED += ("vit_h_14", "vit_l_16", "inception_v3", "resnet18", "resnet50", "regnet_y_128gf", "convnext_tiny")


def test_the_presets_are_those_of_the_installed_torchvision() -> None:
    """Else: python -m pthserve.zoos.torchvision."""
    assert torchvision.make_presets() == {name: TORCHVISION.spec(name) for name in TORCHVISION.names()}


@pytest.mark.parametrize("name", VARIED)
def test_preprocessing_is_torchvisions_to_the_bit(name: str) -> None:
    spec, transform = TORCHVISION.spec(name), models.get_model_weights(name).DEFAULT.transforms()
    for image in pictures():
        ours = normalise(crop_image(image, spec, max_pixels=2**30)[None], spec)[0]
        assert torch.equal(torch.from_numpy(ours), transform(image)), image.size


def pictures() -> Sequence[Image.Image]:
    """A photo, and noise that is narrow, and smaller than any crop."""
    photo = Image.open(io.BytesIO(crops.samples()[0]))
    return photo.convert("RGB"), Image.fromarray(noise(1, 700, 411)), Image.fromarray(noise(2, 90, 61))
