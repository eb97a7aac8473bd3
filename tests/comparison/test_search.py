"""The preprocessing of a user's function is found from its tensors, and what no card can state is said."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms as t
from torchvision.transforms import InterpolationMode

from pthserve.comparison.normalisation import fit, normalisation
from pthserve.comparison.search import Variation, nearest, sample
from pthserve.errors import PthserveError
from pthserve.images.spec import Spec

from .photos import IMAGENET, array, opened, photos, turned

pytestmark = pytest.mark.slow

CARD = Spec(resize=128, crop=(112, 112))
"""What the model card says in these tests."""
BILINEAR = Image.Resampling.BILINEAR


def found(
    paths: list[Path],
    prepare: Callable[[Image.Image], Any],
    spec: Spec = CARD,
    read: Callable[[Path], Image.Image] = opened,
) -> Variation:
    samples = [sample(path, spec) for path in paths]
    return nearest(samples, [array(prepare(read(path))) for path in paths], spec)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photos(tmp_path_factory.mktemp("photos"), "chelsea", "coffee")


def usual(*before: Any, normalise: Any = IMAGENET) -> Any:
    return t.Compose([*before, t.ToTensor(), normalise])


def caffe(image: Image.Image) -> np.ndarray:
    bgr = np.asarray(image.resize((112, 112), BILINEAR), np.float32)[..., ::-1]
    return (bgr - np.array([103.939, 116.779, 123.68], np.float32)).transpose(2, 0, 1)


def values_to_255(image: Image.Image) -> np.ndarray:
    return np.asarray(t.CenterCrop(112)(t.Resize(128)(image)), np.float32).transpose(2, 0, 1)


BICUBIC = InterpolationMode.BICUBIC
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "as the card says": (usual(t.Resize(128), t.CenterCrop(112)), {}),
    "resized as a tensor": (
        t.Compose([t.ToTensor(), t.Resize(128, antialias=True), t.CenterCrop(112), IMAGENET]),
        {},
    ),
    "without antialiasing": (
        t.Compose([t.ToTensor(), t.Resize(128, antialias=False), t.CenterCrop(112), IMAGENET]),
        {"antialias": False},
    ),
    "squashed": (usual(t.Resize((112, 112))), {"resize": (112, 112)}),
    "squashed, then cropped": (usual(t.Resize((128, 128)), t.CenterCrop(112)), {"resize": (128, 128)}),
    "not resized": (usual(t.CenterCrop(112)), {"resize": None}),
    "another crop ratio and filter": (
        usual(t.Resize(118, BICUBIC), t.CenterCrop(112)),
        {"resize": 118, "interpolation": "bicubic"},
    ),
    "another size": (
        usual(t.Resize(160, BICUBIC), t.CenterCrop(150)),
        {"resize": 160, "crop": (150, 150), "interpolation": "bicubic"},
    ),
    "values of -1 to 1": (
        usual(t.Resize(128), t.CenterCrop(112), normalise=t.Normalize([0.5] * 3, [0.5] * 3)),
        {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    ),
    "not normalised": (
        t.Compose([t.Resize(128), t.CenterCrop(112), t.ToTensor()]),
        {"mean": (0.0,) * 3, "std": (1.0,) * 3},
    ),
    "values of 0 to 255": (values_to_255, {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}),
    "numbers of its own": (
        usual(
            t.Resize(128),
            t.CenterCrop(112),
            normalise=t.Normalize([0.3123, 0.29, 0.411], [0.2, 0.19, 0.21]),
        ),
        {"mean": (0.3123, 0.29, 0.411), "std": (0.2, 0.19, 0.21)},
    ),
    "as Caffe": (
        caffe,
        {
            "resize": (112, 112),
            "channel_order": "bgr",
            "mean": pytest.approx((103.939 / 255, 116.779 / 255, 123.68 / 255)),
            "std": (1 / 255,) * 3,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_card_can_state_is_found(paths: list[Path], case: str) -> None:
    prepare, wanted = CASES[case]
    variation = found(paths, prepare)
    assert (variation.obstacle, variation.levels < 0.5) == ("", True), variation
    assert variation.spec.to_dict() == {**CARD.to_dict(), **wanted}


def test_what_is_found_from_a_card_that_says_otherwise_is_the_same(paths: list[Path]) -> None:
    card = replace(CARD, resize=140, interpolation="lanczos", channel_order="bgr", std=(1.0, 1.0, 1.0))
    assert found(paths, CASES["as the card says"][0], card).spec == CARD


def test_an_exif_orientation_that_is_undone_is_found(paths: list[Path]) -> None:
    both = [paths[0], turned(paths[1])]
    prepare = CASES["as the card says"][0]
    upright = found(both, prepare, read=lambda path: ImageOps.exif_transpose(opened(path)))
    assert upright.spec == replace(CARD, exif=True)
    assert found(both, prepare, replace(CARD, exif=True)).spec == CARD


def test_a_grey_model_is_compared_in_one_channel(paths: list[Path]) -> None:
    card = Spec(mean=(0.449,), std=(0.226,))
    prepare = t.Compose([t.Grayscale(), t.Resize((64, 64)), t.ToTensor(), t.Normalize([0.1307], [0.3081])])
    variation = found(paths, prepare, card)
    assert variation.spec == replace(card, resize=(64, 64), crop=(64, 64), mean=(0.1307,), std=(0.3081,))


def pad(image: Image.Image) -> Image.Image:
    made = Image.new("RGB", (112, 112))
    made.paste(image.resize((112, 75)), (0, 18))
    return made


def by_itself(image: Image.Image) -> torch.Tensor:
    tensor = t.ToTensor()(t.CenterCrop(112)(t.Resize(128)(image)))
    return (tensor - tensor.mean()) / tensor.std()


@pytest.mark.parametrize(
    ("prepare", "obstacle"),
    [
        (usual(pad), "pads the image: its tensors have 18 rows at the one edge and 19 at the other"),
        (by_itself, "normalises each image by its own mean"),
        (usual(t.Grayscale(3), t.Resize(128), t.CenterCrop(112)), "makes the image grey and repeats it"),
        (lambda image: -by_itself(image), "normalises each image by its own"),
        (lambda image: 1 - t.ToTensor()(image.resize((112, 112), BILINEAR)), "inverts the image"),
        (
            t.Compose([t.Resize(128), t.CenterCrop(112), t.ToTensor(), lambda x: x / 255, IMAGENET]),
            r"normalises by the mean \[123.7, 116.3, 103.5\] and the deviation",
        ),
    ],
)
def test_what_no_card_can_state_is_said(paths: list[Path], prepare: Any, obstacle: str) -> None:
    assert re.match(obstacle, found(paths, prepare).obstacle)


def test_tensors_of_other_images_are_near_to_nothing(paths: list[Path]) -> None:
    samples = [sample(path, CARD) for path in paths]
    tensors = [array(CASES["as the card says"][0](opened(path))) for path in [*paths[1:], paths[0]]]
    assert nearest(samples, tensors, CARD).levels > 20


def test_an_image_of_one_colour_has_no_slope_and_fits_a_tensor_of_one_value() -> None:
    flat = np.full((4, 4, 3), 7, np.uint8)
    assert fit(flat, np.full((3, 4, 4), 0.3, np.float32)).levels == 0
    assert fit(flat, np.arange(48, dtype=np.float32).reshape(3, 4, 4)).levels == np.inf
    assert normalisation(fit(flat, np.full((3, 4, 4), 0.3, np.float32)), CARD) is None


def test_what_is_not_an_image_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("text")
    for path, words in ((tmp_path / "x.jpg", "send one of"), (tmp_path / "gone.jpg", "No such file")):
        with pytest.raises(PthserveError, match=f"{path}.*{words}"):
            sample(path, CARD)
