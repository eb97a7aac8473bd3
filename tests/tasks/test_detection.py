"""Detection: what a row of numbers means, when two answers agree, and what a golden image demands."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pthserve.files.golden import Golden, GoldenBox
from pthserve.tasks.base import BACKGROUND, Comparison
from pthserve.tasks.choice import TASKS
from pthserve.tasks.detection import DetectionTask
from pthserve.tasks.objects import DetectionAnswer, Table, intersections

HERE = Path(__file__)
TASK = DetectionTask(Table(most=4))
LABELS = (BACKGROUND, "cat", "dog")
SIZE = (200, 100)


def row(*objects: tuple[float, ...], task: DetectionTask = TASK) -> NDArray[np.float32]:
    """What an engine gives: box in shares, score, class, and what else the table has."""
    table = np.zeros((task.table.most, task.table.columns), np.float32)
    for place, values in enumerate(objects):
        table[place, : len(values)] = values
    return table.ravel()


CAT = (0.1, 0.2, 0.5, 0.8, 0.9, 1)
DOG = (0.5, 0.0, 1.0, 1.0, 0.6, 2)
FAINT = (0.0, 0.0, 0.2, 0.2, 0.2, 1)


def test_boxes_are_in_pixels_of_the_image_as_sent() -> None:
    found = TASK.answer(row(CAT, DOG, FAINT), LABELS, SIZE)
    np.testing.assert_allclose(found.boxes, [[20, 20, 100, 80], [100, 0, 200, 100]], atol=1e-4)
    assert found.names == ["cat", "dog"]
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])


def test_a_request_may_lower_the_threshold_or_bound_the_number() -> None:
    found = TASK.answer(row(CAT, DOG, FAINT), LABELS, SIZE)
    for query, names in (
        ({"threshold": "0.1"}, ["cat", "dog", "cat"]),
        ({"threshold": "0"}, ["cat", "dog", "cat"]),
        ({"threshold": "0.7"}, ["cat"]),
        ({"max": "1"}, ["cat"]),
        ({"threshold": "1"}, []),
        ({}, ["cat", "dog"]),
    ):
        assert TASK.selection(query)(found).names == names, query


@pytest.mark.parametrize(
    "query",
    [
        {"threshold": "2"},
        {"threshold": "nan"},
        {"threshold": ""},
        {"max": "0"},
        {"max": "1.5"},
        {"max": "9" * 5000},
        {"masks": "png"},
    ],
)
def test_parameters_that_cannot_be_are_refused_by_name(query: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(query))}` must be"):
        TASK.selection(query)


def test_the_json_is_as_described() -> None:
    task = DetectionTask(Table(most=2, keypoints=1, mask=4, keypoint_names=("nose",)))
    found = task.answer(row((*CAT, 0.25, 0.5, 3.0, *[1.0] * 16), task=task), LABELS, SIZE)
    fields = found.to_dict(5)
    DetectionAnswer.model_validate(fields)
    (one,) = fields["detections"]
    assert one["keypoints"] == [{"name": "nose", "x": 50.0, "y": 50.0, "score": 3.0}]
    assert one["mask"]["size"] == [100, 200]
    assert fields["size"] == [100, 200]
    assert "mask" not in found.at(masks=False).to_dict(5)["detections"][0]
    assert TASKS["detection"].rows(fields)[0] == ("cat", "90.0 %  20 20 100 80", one["score"])


def test_an_image_without_objects_has_an_answer_too() -> None:
    found = TASK.answer(row(), LABELS, SIZE)
    assert (len(found), found.to_dict(5)["detections"]) == (0, [])
    assert TASKS["detection"].rows(found.to_dict(5))[0].name == "nothing"
    for form in TASK.tensor_forms(3):
        values = TASK.tensor(form.name, [found])
        assert len(values) == 0
    TASK.count(found)


def test_tensors_hold_the_objects_of_all_images() -> None:
    answers = [TASK.answer(row(*objects), LABELS, SIZE) for objects in ((CAT, DOG), (), (DOG,))]
    tensors = {form.name: TASK.tensor(form.name, answers) for form in TASK.tensor_forms(3)}
    assert tensors["label"] == [b"cat", b"dog", b"dog"]
    assert list(tensors["image_index"]) == [0, 0, 2]
    assert np.asarray(tensors["boxes"]).shape == (3, 4)


def test_labels_may_leave_the_background_out() -> None:
    assert TASK.labels(("cat", "dog"), 3) == LABELS
    assert TASK.labels(LABELS, 3) == LABELS
    assert TASK.labels(None, 3) == ("0", "1", "2")
    with pytest.raises(ValueError, match="state 2 labels, or 3 with the background's first"):
        TASK.labels(("cat",), 3)


def test_engines_differ_by_scores_of_objects_that_match_and_by_objects_that_do_not() -> None:
    reference = row(CAT, DOG, FAINT)
    moved, other = (0.102, 0.2, 0.5, 0.8, 0.9, 1), (0.3, 0.2, 0.7, 0.8, 0.9, 1)
    for outputs, difference, same, kept in (
        (row(CAT, DOG, FAINT), 0.0, True, True),
        (row(moved, DOG, FAINT), 0.0, True, True),
        (row((*CAT[:4], 0.8, 1), DOG, FAINT), CAT[4] - 0.8, True, True),
        (row((*CAT[:5], 2), DOG, FAINT), CAT[4] - 0.1, False, False),  # another class
        (row(other, DOG, FAINT), CAT[4] - 0.1, False, False),  # somewhere else
        (row(CAT, FAINT), DOG[4] - 0.1, False, False),
        (row(CAT, DOG, FAINT, (0.8, 0.8, 0.9, 0.9, 0.51, 1)), 0.41, False, True),  # none of the reference's
        (row(CAT, DOG, FAINT, (0.8, 0.8, 0.9, 0.9, 0.3, 1)), 0.2, True, True),  # which is not answered
        (row(CAT, DOG, FAINT, (0.8, 0.8, 0.9, 0.9, 0.08, 1)), 0.0, True, True),  # below FLOOR
    ):
        found = TASK.agree(outputs[None], reference[None], 0.1)
        np.testing.assert_allclose(found.differences, [difference], atol=1e-6)
        assert decisions(found) == (same, True, kept)
    nan = TASK.agree(np.full_like(reference, np.nan)[None], reference[None], 0.1)
    np.testing.assert_array_equal(nan.differences, [np.inf])
    assert decisions(nan) == (False, True, False)
    empty = TASK.agree(row()[None], row(FAINT)[None], 0.1)
    assert decisions(empty) == (True, False, True)


def decisions(found: Comparison) -> tuple[bool, ...]:
    """Whether the decision on the one image is the same, clear, and kept."""
    (same, clear, kept) = (each for each in found[1:] if each is not None)
    return bool(same[0]), bool(clear[0]), bool(kept[0])


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ((GoldenBox(1, (20, 20, 100, 80), 0.9), GoldenBox(2, (100, 0, 200, 100))), ""),
        ((GoldenBox(1, (24, 20, 104, 80), 0.89), GoldenBox(2, (100, 0, 200, 100))), ""),
        (
            (GoldenBox(1, (24, 20, 104, 80), iou=0.95), GoldenBox(2, (100, 0, 200, 100))),
            "no cat at 24 20 104 80",
        ),
        ((GoldenBox(1, (20, 20, 100, 80), 0.5), GoldenBox(2, (100, 0, 200, 100))), "and not 0.5 ± 0.02"),
        ((GoldenBox(1, (20, 20, 100, 80)),), "a dog at 100 0 200 100 that should not be there"),
        ((GoldenBox(9, (20, 20, 100, 80)),), "there is no class 9 among 3"),
        ((GoldenBox(None, (20, 20, 100, 80), label="owl"),), "there is no class 'owl' among 3"),
        (
            (GoldenBox(None, (20, 20, 100, 80), label="cat"), GoldenBox(2, (100, 0, 200, 100))),
            "",
        ),
        ((GoldenBox(1, (20, 20, 100, 80)),) * 2, "no cat at"),
    ],
)
def test_a_golden_image_states_all_objects(boxes: tuple[GoldenBox, ...], reason: str) -> None:
    golden = Golden(HERE, boxes=boxes)
    (result,) = TASK.check_golden(row(CAT, DOG, FAINT)[None], [golden], LABELS, 0.02, [SIZE])
    assert bool(result.reason) == bool(reason)
    assert reason in result.reason


def test_what_a_model_says_of_an_image_is_a_golden_answer_that_it_gives_again() -> None:
    found = TASK.answer(row(CAT, DOG, FAINT), LABELS, SIZE)
    golden = Golden(HERE, **TASK.golden(found))
    assert golden.kind == "boxes"
    (result,) = TASK.check_golden(row(CAT, DOG, FAINT)[None], [golden], LABELS, 1e-6, [SIZE])
    assert result.reason == ""


def test_two_models_are_the_same_where_they_find_the_same_objects() -> None:
    found, shifted, fewer = (
        TASK.answer(row(*objects), LABELS, SIZE)
        for objects in ((CAT, DOG), ((0.15, 0.2, 0.55, 0.8, 0.7, 1), DOG), (CAT,))
    )
    assert TASK.same(found, shifted)
    assert not TASK.same(found, fewer)


def test_the_picture_has_boxes_where_the_objects_are() -> None:
    found = TASK.answer(row(CAT), LABELS, SIZE)
    for scale in (1, 2):
        picture = np.asarray(found.draw(Image.new("RGB", (200 * scale, 100 * scale))))
        assert picture.shape == (100 * scale, 200 * scale, 3)
        assert picture[50 * scale, 20 * scale].any()
        assert not picture[50 * scale, 60 * scale].any()


def test_a_mask_is_drawn_over_the_object() -> None:
    task = DetectionTask(Table(most=1, mask=4))
    found = task.answer(row((*CAT, *[1.0] * 16), task=task), LABELS, SIZE)
    picture = np.asarray(found.draw(Image.new("RGB", SIZE)))
    assert picture[50, 60].any()
    assert not picture[5, 150].any()


def test_an_object_too_narrow_to_overlap_anything_is_not_compared() -> None:
    """As of a box beside the image, once it is cut to it: two of them hardly overlap, though nearly equal."""
    cut = (0.0, 0.0, 0.5, 0.0005, 0.9, 1)
    found = TASK.agree(row(cut, DOG)[None], row((0.0, 0.0, 0.5, 0.0002, 0.9, 1), DOG)[None], 0.1)
    assert found.differences.tolist() == [0]
    assert [one is not None and one.tolist() for one in found[1:]] == [[True]] * 3
    alone = TASK.agree(row()[None], row(cut)[None], 0.1)
    assert (alone.differences.tolist(), alone.clear is not None and alone.clear.tolist()) == ([0], [False])
    twice = TASK.answer(row((0.2, 0.0, 0.5, 0.0, 0.9, 1)), LABELS, SIZE)
    assert TASK.same(twice, twice)


def test_intersection_over_union_of_boxes() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6], [0, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(intersections(boxes, boxes[0]), [1, 1 / 7, 0, 0], atol=1e-6)
    assert intersections(boxes[3:], boxes[3]).tolist() == [1], "a box without an area is still itself"
    assert intersections(boxes[3:] + 1, boxes[3]).tolist() == [0]
