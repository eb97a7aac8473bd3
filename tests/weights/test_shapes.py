"""weights/shapes: a detector that is trained here, and finds shapes on photos that it has not seen."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import pthserve
from pthserve.loading.model import Model

from ..conftest import WEIGHTS, serving

FOLDER = WEIGHTS / "shapes"


@pytest.fixture(scope="module")
def model(shapes: Path) -> Iterator[Model]:
    """The model as pthserve loads it; its golden images agree, or it would not load."""
    with pthserve.load(shapes, engine="torch") as loaded:
        yield loaded


# --- the scenes


def test_a_box_is_as_large_as_its_shape(train: ModuleType) -> None:
    """Drawn in front of black, nothing but the shape has a colour."""
    random = np.random.default_rng(3)
    black = Image.new("RGB", (300, 300))
    for _ in range(50):
        scene = train.scene(black, random, most=1)
        drawn = np.asarray(scene.image).max(2)
        rows, columns = np.nonzero(drawn > drawn.max() / 2)
        (box,) = scene.boxes
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(box - edges).max() <= 1


def test_the_same_seed_gives_the_same_scenes(train: ModuleType) -> None:
    one, other = (next(train.scenes(5)) for _ in range(2))
    assert one.image.tobytes() == other.image.tobytes()
    assert np.array_equal(one.boxes, other.boxes)
    assert next(train.scenes(6)).image.tobytes() != one.image.tobytes()


def test_no_photo_of_the_held_out_scenes_is_trained_on(train: ModuleType) -> None:
    trained_on, held_out = ({photo.tobytes() for photo in train.photos(part)} for part in (False, True))
    assert len(trained_on) == 10
    assert len(held_out) == 4
    assert not trained_on & held_out


def test_the_held_out_scenes_have_all_shapes(train: ModuleType) -> None:
    counts = np.bincount(np.concatenate([scene.classes for scene in train.held_out_scenes()]))
    assert counts[0] == 0
    assert counts[1:].min() >= 50


# --- mean average precision


def _known(
    train: ModuleType, *boxes: tuple[float, float, float, float], classes: tuple[int, ...] = ()
) -> Any:
    kinds = np.array(classes or [1] * len(boxes), np.int64)
    return train.Scene(Image.new("RGB", (1, 1)), np.array(boxes, np.float32).reshape(-1, 4), kinds)


def _found(train: ModuleType, *rows: tuple[float, float, float, float, float, int]) -> Any:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return train.Found(table[:, :4], table[:, 5].astype(np.int64), table[:, 4])


def test_average_precision_is_the_area_under_the_curve(train: ModuleType) -> None:
    """Right, wrong, right, wrong, of three shapes: precision 1 up to a recall of 1/3, then 2/3 up to 2/3."""
    known = _known(train, (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10))
    found = _found(
        train,
        (0, 0, 10, 10, 0.9, 1),
        (60, 0, 70, 10, 0.8, 1),
        (20, 0, 30, 10, 0.7, 1),
        (80, 0, 90, 10, 0.6, 1),
    )
    assert train.mean_average_precision([found], [known]) == pytest.approx((1 + 2 / 3) / 3)


def test_a_precision_counts_as_the_largest_at_a_higher_recall(train: ModuleType) -> None:
    """Wrong, right, right: the precisions 0, 1/2 and 2/3 make 2/3 at each recall."""
    known = _known(train, (0, 0, 10, 10), (20, 0, 30, 10))
    found = _found(train, (60, 0, 70, 10, 0.9, 1), (0, 0, 10, 10, 0.8, 1), (20, 0, 30, 10, 0.7, 1))
    assert train.mean_average_precision([found], [known]) == pytest.approx(2 / 3)


def test_a_shape_that_is_found_twice_is_right_once(train: ModuleType) -> None:
    known = _known(train, (0, 0, 10, 10), (20, 0, 30, 10))
    found = _found(train, (0, 0, 10, 10, 0.9, 1), (0, 0, 10, 9, 0.8, 1), (20, 0, 30, 10, 0.7, 1))
    assert train.mean_average_precision([found], [known]) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize(("width", "score"), [(5, 1.0), (4.9, 0.0)])
def test_a_box_is_right_from_an_intersection_over_union_of_a_half_on(
    train: ModuleType, width: float, score: float
) -> None:
    known = _known(train, (0, 0, 10, 10))
    assert train.mean_average_precision([_found(train, (0, 0, width, 10, 0.9, 1))], [known]) == score


def test_scores_are_compared_across_images_and_classes_are_not(train: ModuleType) -> None:
    known = [_known(train, (0, 0, 10, 10)), _known(train, (0, 0, 10, 10), classes=(2,))]
    found = [
        _found(train, (0, 0, 10, 10, 0.5, 1)),
        _found(train, (0, 0, 10, 10, 0.6, 1), (0, 0, 10, 10, 0.1, 2)),
    ]
    # Of class 1, a wrong box in the second image comes before the right one in the first.
    assert train.mean_average_precision(found, known) == pytest.approx((0.5 + 1) / 2)


def test_nothing_found_is_a_precision_of_0(train: ModuleType) -> None:
    assert train.mean_average_precision([_found(train)], [_known(train, (0, 0, 10, 10))]) == 0


# --- training


@pytest.mark.slow
def test_training_gives_the_same_weights_every_time(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, few in (("SMALL_STEPS", 2), ("SMALL_BATCH", 4), ("BATCH", 2)):
        monkeypatch.setattr(train, name, few)
    first, second = (train.train(2).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_model_that_learned_too_little_is_not_written(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "train", lambda: train.network().eval())
    monkeypatch.setattr(train, "HELD_OUT", 4)
    with pytest.raises(SystemExit, match="nothing was written"):
        train.main(tmp_path / "shapes.pth")
    assert not list(tmp_path.iterdir())


# --- the trained model, whose training takes six minutes of two cores


@pytest.mark.long
def test_the_mean_average_precision_in_held_out_scenes_is_over_90_percent(
    train: ModuleType, model: Model
) -> None:
    scenes = train.held_out_scenes()
    answers = [answer.at(0.0) for answer in model.batch([scene.image for scene in scenes])]
    found = [train.Found(one.boxes, one.class_indices, one.scores) for one in answers]
    assert train.mean_average_precision(found, scenes) > 0.9


@pytest.mark.long
def test_the_answers_are_those_of_torchvision(train: ModuleType, shapes: Path, model: Model) -> None:
    plain = train.network().eval()
    plain.load_state_dict(torch.load(shapes / "shapes.pth", weights_only=True))
    for scene in train.held_out_scenes()[:10]:
        ours, theirs = model(scene.image).at(0.5), train.detect(plain, scene)
        sure = theirs.scores >= 0.5
        assert np.array_equal(ours.class_indices, theirs.classes[sure])
        assert np.abs(ours.boxes - theirs.boxes[sure]).max(initial=0) < 0.01
        assert np.abs(ours.scores - theirs.scores[sure]).max(initial=0) < 1e-4


@pytest.mark.slow
def test_the_golden_images_are_held_out_scenes_with_their_boxes(train: ModuleType) -> None:
    scenes = {scene.image.tobytes(): scene for scene in train.held_out_scenes()}
    golden = yaml.safe_load((FOLDER / "model.yaml").read_text())["golden"]
    for one in golden:
        scene = scenes[Image.open(FOLDER / one["image"]).tobytes()]
        assert [box["box"] for box in one["boxes"]] == scene.boxes.tolist()
        assert [train.LABELS.index(box["label"]) + 1 for box in one["boxes"]] == scene.classes.tolist()
    assert {box["label"] for one in golden for box in one["boxes"]} == set(train.LABELS)


@pytest.mark.long
def test_the_service_finds_the_shapes_of_a_held_out_scene(
    train: ModuleType, shapes: Path, tmp_path: Path
) -> None:
    golden = yaml.safe_load((shapes / "model.yaml").read_text())["golden"][0]
    with serving(shapes, tmp_path / "log") as address:
        reply = httpx.post(
            f"{address}/predict", files={"image": (shapes / golden["image"]).read_bytes()}, timeout=60
        )
    found = reply.json()["detections"]
    assert sorted(one["label"] for one in found) == sorted(box["label"] for box in golden["boxes"])
    for box in golden["boxes"]:
        assert any(
            one["label"] == box["label"] and np.abs(np.subtract(one["box"], box["box"])).max() < 12
            for one in found
        )
