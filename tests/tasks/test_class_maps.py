"""Class maps: the classes that torch gives pixels when it resizes scores twice, as runs, within bounds."""

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from pthserve.tasks.class_maps import ClassMap, Scores, class_map

ROUNDING = 1e-4
"""Scores that differ by less may come in either order."""


def scores(seed: int, classes: int, network: tuple[int, int], stride: int = 8) -> Scores:
    """Random scores of a network's image of (height, width)."""
    height, width = network
    places = (classes, -(-height // stride), -(-width // stride))
    return Scores(np.random.default_rng(seed).normal(size=places).astype(np.float32), height, width)


def expected(given: Scores, size: tuple[int, int]) -> torch.Tensor:
    """The scores of the image's pixels: float32 (classes, height, width)."""
    network = interpolate(torch.from_numpy(given.values)[None], (given.height, given.width), mode="bilinear")
    return interpolate(network, size[::-1], mode="bilinear")[0]


@pytest.mark.parametrize(
    ("network", "size"),
    [
        ((52, 69), (400, 300)),
        ((52, 69), (69, 52)),  # the network's image itself
        ((52, 69), (20, 15)),  # smaller than that
        ((69, 52), (3, 700)),
        ((52, 416), (1600, 200)),
        ((8, 8), (9, 1)),
        ((1, 1), (5, 4)),
    ],
)
@pytest.mark.parametrize("classes", [2, 21])
def test_each_pixel_has_the_class_that_torch_gives_it(
    network: tuple[int, int], size: tuple[int, int], classes: int
) -> None:
    given = scores(sum(size), classes, network)
    pixels = expected(given, size)
    first, second = pixels.topk(2, 0).values
    sure = (first - second > ROUNDING).numpy()
    found = class_map(given, size)
    assert found.size == size
    np.testing.assert_array_equal(found.to_array(np.uint8)[sure], pixels.argmax(0).numpy()[sure])
    assert sure.mean() > 0.99


def test_scores_are_resized_to_the_network_s_image_as_the_model_does_it() -> None:
    given = scores(1, 5, (61, 90))
    network = interpolate(torch.from_numpy(given.values)[None], (61, 90), mode="bilinear")[0]
    np.testing.assert_allclose(given.resized(), network, atol=1e-5)


def test_strips_of_a_large_image_are_one_map(monkeypatch: pytest.MonkeyPatch) -> None:
    given, size = scores(2, 5, (52, 69)), (300, 200)
    whole = class_map(given, size)
    monkeypatch.setattr("pthserve.tasks.class_maps._AT_ONCE", 1000)
    for one, other in zip(whole, class_map(given, size), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (whole.classes[1:] != whole.classes[:-1]).all()


def test_areas_and_masks_are_those_of_the_array() -> None:
    found = class_map(scores(3, 5, (52, 69)), (120, 90))
    pixels = found.to_array(np.uint8)
    np.testing.assert_array_equal(found.pixels(6), np.bincount(pixels.ravel(), minlength=6))
    for index in range(6):
        np.testing.assert_array_equal(found.runs(index).to_array(), pixels == index)


def test_agreement_is_the_share_of_pixels_that_are_the_same() -> None:
    one, other = (class_map(scores(seed, 3, (52, 69)), (120, 90)) for seed in (4, 5))
    assert one.agreement(one) == 1
    share = (one.to_array(np.uint8) == other.to_array(np.uint8)).mean()
    assert 0.1 < share < 0.9
    assert one.agreement(other) == pytest.approx(share)
    assert one.agreement(class_map(scores(4, 3, (52, 69)), (90, 120))) == 0


def test_more_classes_than_a_byte_holds() -> None:
    values: NDArray[np.float32] = np.zeros((300, 1, 1), np.float32)
    values[299] = 1
    found = class_map(Scores(values, 8, 8), (3, 2))
    np.testing.assert_array_equal(found.to_array(np.uint16), np.full((2, 3), 299))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(4000, 3000), (200, 20_000), (20_000, 200)])
@pytest.mark.parametrize("classes", [2, 21, 150])
def test_memory_is_bounded_by_what_the_cost_says_however_large_the_image(
    size: tuple[int, int], classes: int
) -> None:
    """Noise, which has the most runs; its scores at 12 million pixels would be up to 7 GB."""
    given = scores(6, classes, (130, 173))
    tracemalloc.start()
    try:
        found = class_map(given, size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < given.cost(size).memory < 400 * 2**20
    assert int(found.ends[-1]) == size[0] * size[1]


def test_confidence_is_the_mean_probability_of_the_top_class() -> None:
    given = scores(7, 4, (52, 69))
    softmax = torch.from_numpy(given.values).softmax(0)
    assert given.confidence() == pytest.approx(float(softmax.amax(0).mean()), rel=1e-5)


def test_a_row_reads_back_as_the_scores_in_it() -> None:
    given = scores(8, 4, (52, 69))
    header = np.array([*given.values.shape[1:], given.height, given.width], np.float32)
    again = Scores.read(np.concatenate((header, given.values.ravel())), 4)
    np.testing.assert_array_equal(again.values, given.values)
    assert again[1:] == given[1:]


def test_runs_of_one_class_are_one() -> None:
    found = class_map(Scores(np.zeros((2, 4, 4), np.float32), 32, 32), (5000, 300))
    assert isinstance(found, ClassMap)
    assert (found.ends.tolist(), found.classes.tolist()) == ([1_500_000], [0])
