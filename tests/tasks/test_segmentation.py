"""Segmentation: what a row of scores means, when two answers agree, and what a golden image demands."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pthserve.errors import MalformedRequest
from pthserve.files.golden import Golden
from pthserve.tasks.base import BACKGROUND, Deferred, Drawn, Encoded
from pthserve.tasks.choice import TASKS
from pthserve.tasks.drawing import palette
from pthserve.tasks.segmentation import UNKNOWN, SegmentationTask
from pthserve.tasks.segments import Segmentation, SegmentationAnswer

from .test_masks import decoded

TASK = SegmentationTask(3)
LABELS = (BACKGROUND, "cat", "dog")
SIZE = (8, 4)
LEFT = [[0, 0, 1, 1], [0, 0, 1, 1]]
"""Classes of places: the right half is a cat."""


def row(classes: Any, score: float = 4.0, network: tuple[int, int] = (2, 4)) -> NDArray[np.float32]:
    """What an engine gives: the score of the class at each place is `score`, that of the others 0."""
    places = np.array(classes)
    values = score * (np.arange(3)[:, None, None] == places)
    return np.concatenate(([*places.shape, *network], values.ravel())).astype(np.float32)


@pytest.fixture
def found() -> Segmentation:
    return TASK.answer(row(LEFT), LABELS, SIZE)


def test_classes_have_areas_at_the_size_of_the_image_as_sent(found: Segmentation) -> None:
    assert found.class_map.shape == (4, 8)
    assert found.class_map.dtype == np.uint8
    np.testing.assert_array_equal(found.class_map, [[0] * 4 + [1] * 4] * 4)
    assert found.pixels.tolist() == [16, 16, 0]
    assert found.shares.tolist() == [0.5, 0.5, 0]
    assert found.names == [BACKGROUND, "cat"]
    np.testing.assert_array_equal(found.mask(1), found.class_map == 1)


def test_the_json_is_as_described(found: Segmentation) -> None:
    fields = found.to_dict(5)
    SegmentationAnswer.model_validate(fields)
    assert fields["size"] == [4, 8]
    for one in fields["classes"]:
        assert (one["pixels"], one["share"]) == (16, 0.5)
        np.testing.assert_array_equal(decoded(one["mask"]), found.mask(one["class_index"]))
    assert TASKS["segmentation"].rows(fields)[1] == ("cat", "50.0 %  16 pixels", 0.5)


def test_a_request_chooses_how_pixels_are_given(found: Segmentation) -> None:
    without = TASK.selection({"masks": "none"})(found).to_dict(5)
    assert without.keys() == {"task", "classes", "size"}
    assert all("mask" not in one for one in without["classes"])
    with_png = TASK.selection({"masks": "png"})(found).to_dict(5)
    SegmentationAnswer.model_validate(with_png)
    picture = Image.open(io.BytesIO(base64.b64decode(with_png["class_map"])))
    np.testing.assert_array_equal(np.asarray(picture), found.class_map)
    assert TASK.selection({"picture": "overlay"})(found).overlaid
    for query in ({"masks": "yes"}, {"picture": "png"}):
        with pytest.raises(ValueError, match=f"`{next(iter(query))}` must be"):
            TASK.selection(query)


def test_the_picture_has_class_indices_and_pascal_voc_s_colours(found: Segmentation) -> None:
    picture = Image.open(io.BytesIO(found.png()))
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), found.class_map)
    assert picture.convert("RGB").getpixel((7, 0)) == (128, 0, 0)
    assert palette(22)[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert palette(22)[20:] == [(0, 64, 128), (128, 64, 128)]


def test_more_classes_than_a_palette_has_are_a_picture_of_16_bits() -> None:
    values = np.zeros((300, 1, 1), np.float32)
    values[299] = 1
    outputs = np.concatenate((np.array([1, 1, 8, 8], np.float32), values.ravel()))
    found = SegmentationTask(300).answer(outputs, tuple(map(str, range(300))), (3, 2))
    assert found.class_map.dtype == np.uint16
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found.png()))), np.full((2, 3), 299))
    assert SegmentationTask(300).tensor_forms(300)[0].datatype == "INT64"
    assert np.asarray(SegmentationTask(300).tensor("class_map", [found])).dtype == np.int64


def test_all_classes_but_the_first_are_drawn_over_the_image(found: Segmentation) -> None:
    large = TASK.answer(row(LEFT), LABELS, (400, 200))
    for scale in (1, 2):
        picture = np.asarray(large.draw(Image.new("RGB", (400 * scale, 200 * scale), "white")))
        assert picture.shape == (200 * scale, 400 * scale, 3)
        assert picture[150 * scale, 50 * scale].tolist() == [255, 255, 255]
        assert picture[150 * scale, 350 * scale].tolist() != [255, 255, 255]
        assert picture[2, 2].tolist() != [255, 255, 255]  # the labels
    assert isinstance(found, Deferred)
    assert isinstance(found, Drawn)
    assert isinstance(found, Encoded)


def test_labels_may_leave_the_background_out() -> None:
    assert TASK.labels(("cat", "dog"), 3) == LABELS
    assert TASK.labels(LABELS, 3) == LABELS
    assert TASK.labels(None, 3) == ("0", "1", "2")
    with pytest.raises(ValueError, match="state 3 labels, or 2 if class 0 is the background"):
        TASK.labels(("cat",), 3)


def test_tensors_are_class_maps_and_areas_of_images_of_one_size(found: Segmentation) -> None:
    other = TASK.answer(row([[2]]), LABELS, SIZE)
    maps = np.asarray(TASK.tensor("class_map", [found, other]))
    assert maps.shape == (2, 4, 8)
    assert maps.dtype == np.uint8
    np.testing.assert_array_equal(maps[1], np.full((4, 8), 2))
    assert np.asarray(TASK.tensor("pixels", [found, other])).tolist() == [[16, 16, 0], [0, 0, 32]]
    small = TASK.answer(row([[2]]), LABELS, (2, 2))
    with pytest.raises(MalformedRequest, match="one request for each size"):
        TASK.tensor("class_map", [found, small])
    assert np.asarray(TASK.tensor("pixels", [found, small])).shape == (2, 3)


def test_engines_differ_by_probabilities_and_by_the_classes_of_places() -> None:
    classes = np.zeros((20, 20), int)
    classes[:, 10:] = 1
    few, many = classes.copy(), classes.copy()
    few[0, 0] = many[:2] = 2
    reference = row(classes)
    for outputs, largest, same, kept in (
        (row(classes), 0.0, True, True),
        (row(classes, 4.1), 0.01, True, True),
        (row(few), 1.0, True, True),
        (row(many), 1.0, False, False),
    ):
        result = TASK.agree(outputs[None], reference[None], 0.1)
        assert (result.differences[0] == 0) == (largest == 0)
        assert result.differences[0] <= largest
        assert [bool(each[0]) for each in result[1:] if each is not None] == [same, True, kept]
    unclear = TASK.agree(row(many, 0.01)[None], row(classes, 0.01)[None], 0.1)
    assert [bool(each[0]) for each in unclear[1:] if each is not None] == [False, False, True]
    nan = reference.copy()
    nan[-1] = np.nan
    broken = TASK.agree(nan[None], reference[None], 0.1)
    assert broken.differences.tolist() == [np.inf]


@pytest.fixture
def known(found: Segmentation, tmp_path: Path) -> Path:
    """The class map that the model gives, with one pixel of 32 that is another class, and one unknown."""
    pixels = found.class_map.copy()
    pixels[0, 0], pixels[0, 1] = 2, UNKNOWN
    file = tmp_path / "known.png"
    Image.fromarray(pixels).save(file)
    return file


@pytest.mark.parametrize(
    ("agreement", "tolerance", "reason"),
    [
        (None, 0.04, ""),
        (None, 0.02, "96.77 % of the pixels have the class that they have in known.png, and not 98 %"),
        (0.96, 0.0, ""),
        (0.97, 1.0, "and not 97 % or more"),
    ],
)
def test_a_golden_image_states_the_classes_of_pixels(
    known: Path, agreement: float | None, tolerance: float, reason: str
) -> None:
    golden = Golden(known, class_map=known, agreement=agreement)
    assert golden.kind == "class_map"
    (result,) = TASK.check_golden(row(LEFT)[None], [golden], LABELS, tolerance, [SIZE])
    assert result.difference == pytest.approx(1 / 31)
    assert bool(result.reason) == bool(reason)
    assert reason in result.reason


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.new("L", (4, 8)), "has 4 x 8 pixels, and the image 8 x 4"),
        (Image.new("RGB", SIZE), "its pixels are RGB, not class indices"),
        (Image.new("L", SIZE, 3), "has the class 3, but there are 3 classes"),
        (Image.new("L", SIZE, UNKNOWN), "has no pixel whose class is known"),
        (None, "cannot be read as PNG"),
    ],
)
def test_a_golden_class_map_that_cannot_be_one_is_told(
    picture: Image.Image | None, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "known.png"
    if picture is None:
        file.write_bytes(b"no picture")
    else:
        picture.save(file)
    (result,) = TASK.check_golden(row(LEFT)[None], [Golden(file, class_map=file)], LABELS, 0.5, [SIZE])
    assert reason in result.reason


def test_what_a_model_says_of_an_image_is_a_golden_answer_that_it_gives_again(
    found: Segmentation, tmp_path: Path
) -> None:
    file = tmp_path / "known.png"
    file.write_bytes(TASK.golden(found)["class_map"])
    (result,) = TASK.check_golden(row(LEFT)[None], [Golden(file, class_map=file)], LABELS, 0.0, [SIZE])
    assert result == (0.0, "")


def test_two_models_are_the_same_where_nearly_all_pixels_are(found: Segmentation) -> None:
    assert TASK.same(found, TASK.answer(row(LEFT, 2), LABELS, SIZE))
    assert not TASK.same(found, TASK.answer(row([[0]]), LABELS, SIZE))
    assert not TASK.same(found, TASK.answer(row(LEFT), LABELS, (8, 5)))
