"""A heat map is where in an image its class is, however it was found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pthserve.engines.base import Explanation
from pthserve.engines.heat_map import AT_ONCE, GRID, heat_map
from pthserve.errors import EngineFailed
from pthserve.images.preprocess import crop
from pthserve.images.spec import Spec
from pthserve.loading.load import build
from pthserve.options import ModelOptions
from pthserve.tasks.classification import CLASSIFICATION

SPEC = Spec(resize=None, crop=(70, 84), mean=(0.0, 0.5, 1.0), std=(1.0, 1.0, 1.0))
Pixels = NDArray[np.uint8]


def of(engine: Any, image: Pixels, class_index: int, forward: Any, spec: Spec = SPEC) -> Explanation:
    """The heat map that `engine` has, or that occlusion finds."""
    return heat_map(engine, spec, image, CLASSIFICATION.target(class_index), forward)


class Inside:
    """An engine that has its own map, or says that it has none."""

    def __init__(self, found: NDArray[np.float32] | None) -> None:
        self.found = found

    def explain(self, image: Pixels, class_index: int) -> Explanation | None:
        return None if self.found is None else Explanation("insight", self.found)


def red_at(row: int, column: int) -> Callable[[Pixels], NDArray[np.float32]]:
    """Class 1 is as likely as the pixel there is red."""

    def forward(images: Pixels) -> NDArray[np.float32]:
        assert 0 < len(images) <= AT_ONCE
        red = images[:, row, column, 0] / np.float32(255)
        return np.stack((np.zeros_like(red), 5 * red, np.ones_like(red)), 1)

    return forward


def test_the_engine_s_own_map_is_brought_to_0_to_1() -> None:
    found = np.array([[-3, 0], [1, 4]], np.float32)
    explanation = of(Inside(found), np.zeros(SPEC.image_shape, np.uint8), 0, red_at(0, 0))
    assert explanation.method == "insight"
    assert explanation.map.dtype == np.float32
    np.testing.assert_array_equal(explanation.map, [[0, 0], [0.25, 1]])


def test_where_nothing_speaks_for_the_class_the_map_is_0() -> None:
    explanation = of(
        Inside(np.full((2, 3), -1, np.float32)), np.zeros(SPEC.image_shape, np.uint8), 0, red_at(0, 0)
    )
    np.testing.assert_array_equal(explanation.map, np.zeros((2, 3)))


def test_a_map_that_is_not_of_numbers_is_a_failure() -> None:
    with pytest.raises(EngineFailed, match="contains NaN"):
        of(Inside(np.full((2, 2), np.nan, np.float32)), np.zeros((2, 2, 3), np.uint8), 0, red_at(0, 0))


@pytest.mark.slow
@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 82), (69, 83), (35, 42), (30, 13)])
@pytest.mark.parametrize("engine", [object(), Inside(None)], ids=["no insight", "none of this model"])
def test_occlusion_finds_the_pixel_that_decides(row: int, column: int, engine: object) -> None:
    image = np.full(SPEC.image_shape, 255, np.uint8)
    explanation = of(engine, image, 1, red_at(row, column))
    assert explanation.method == "occlusion"
    assert explanation.map.shape == (GRID, GRID)
    found = np.argwhere(explanation.map == 1)
    assert [row * GRID // 70, column * GRID // 84] in found.tolist()
    # A patch hides what is at most one place away, and nothing else.
    assert np.abs(found - [(row + 0.5) * GRID / 70 - 0.5, (column + 0.5) * GRID / 84 - 0.5]).max() <= 1
    np.testing.assert_array_equal(explanation.map[explanation.map != 1], 0)


def test_occlusion_of_a_class_that_the_pixel_speaks_against_finds_nothing() -> None:
    image = np.full(SPEC.image_shape, 255, np.uint8)
    assert not of(object(), image, 0, red_at(35, 42)).map.any()


# The demo: a real model and a real photo.

CAT, BOX = 285, (0, 0, 204, 224)
"""Egyptian cat; the cat's box in the crop of scikit-image's photo, by eye: left, top, right, bottom. Its face
fills the crop; what is to the right of it is a cushion."""


def share(heat: NDArray[np.float32], box: tuple[int, int, int, int]) -> float:
    """The share of the mass of `heat`, spread over 224 x 224 pixels, that is in `box`."""
    smooth = np.asarray(Image.fromarray(heat).resize((224, 224), Image.Resampling.BILINEAR))
    left, top, right, bottom = box
    return float(smooth[top:bottom, left:right].sum() / smooth.sum())


@pytest.fixture(scope="module")
def demo(imagenet: Path) -> Any:
    """The demo's module, spec, and the crop of the cat's photo."""
    built = build(str(imagenet), ModelOptions(allow_code="efficientnet_lite_pytorch"))
    photo = (imagenet / "golden" / "chelsea.jpg").read_bytes()
    return built.architecture.module, built.spec, crop(photo, built.spec, max_pixels=2**30)


@pytest.fixture(scope="module", params=["torch", "openvino", "occlusion"])
def engine(request: pytest.FixtureRequest, demo: Any) -> Any:
    from pthserve.engines.openvino_engine import OpenVINOEngine
    from pthserve.engines.openvino_graph import convert
    from pthserve.engines.torch_engine import TorchEngine

    module, spec, _ = demo
    if request.param == "torch":
        return TorchEngine(module, spec)
    made = OpenVINOEngine(convert(module, spec), spec)
    return made if request.param == "openvino" else made.__call__


@pytest.mark.slow
def test_the_heat_is_on_the_cat(demo: Any, engine: Any) -> None:
    _, spec, cat = demo
    heat = heat_map(engine, spec, cat, CLASSIFICATION.target(CAT), engine.__call__).map
    assert share(heat, BOX) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("corner", [(0, 0), (0, 112), (112, 0), (112, 112)])
def test_the_heat_is_on_a_small_cat_wherever_it_is(demo: Any, engine: Any, corner: tuple[int, int]) -> None:
    _, spec, cat = demo
    top, left = corner
    scene = np.full(spec.image_shape, np.rint(255 * np.array(spec.mean)), np.uint8)
    scene[top : top + 112, left : left + 112] = Image.fromarray(cat).resize((112, 112))
    heat = heat_map(engine, spec, scene, CLASSIFICATION.target(CAT), engine.__call__).map
    assert share(heat, (left, top, left + 112, top + 112)) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("corner", [(0, 0), (0, 140), (140, 0), (140, 140)])
def test_the_heat_is_on_a_cat_that_is_a_seventh_of_another_picture(
    demo: Any, imagenet: Path, engine: Any, corner: tuple[int, int]
) -> None:
    _, spec, cat = demo
    top, left = corner
    scene = crop((imagenet / "golden" / "camera.jpg").read_bytes(), spec, max_pixels=2**30).copy()
    scene[top : top + 84, left : left + 84] = np.asarray(Image.fromarray(cat).resize((84, 84)))
    heat = heat_map(engine, spec, scene, CLASSIFICATION.target(CAT), engine.__call__).map
    assert share(heat, (left, top, left + 84, top + 84)) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("grey", [0, 124, 255])
def test_a_blank_image_has_a_map_too(demo: Any, engine: Any, grey: int) -> None:
    _, spec, _ = demo
    heat = heat_map(
        engine, spec, np.full(spec.image_shape, grey, np.uint8), CLASSIFICATION.target(CAT), engine.__call__
    ).map
    assert np.isfinite(heat).all()
    assert 0 <= heat.min() <= heat.max() <= 1
