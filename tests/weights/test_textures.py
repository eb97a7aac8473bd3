"""weights/textures: a segmentation model that is trained here, and knows textures that it has not seen."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import pthserve
from pthserve.loading.model import Model

from ..conftest import WEIGHTS, serving

FOLDER = WEIGHTS / "textures"


@pytest.fixture(scope="module")
def model(textures: Path) -> Iterator[Model]:
    """The model as pthserve loads it; its golden images agree, or it would not load."""
    with pthserve.load(textures) as loaded:
        yield loaded


# --- the scenes


def test_each_pixel_has_the_texture_that_the_class_map_says(train: ModuleType) -> None:
    """Of textures of one grey level each, a region has the brightness of its own alone."""
    plain = [np.full((200, 200), level, np.uint8) for level in (0, 100, 200)]
    random = np.random.default_rng(7)
    for _ in range(20):
        scene = train.scene(plain, random)
        pixels = np.asarray(scene.image)
        levels = [np.unique(pixels[scene.class_map == index]) for index in np.unique(scene.class_map)]
        assert 2 <= len(levels) <= 3
        assert all(len(found) == 1 for found in levels)


def test_the_same_seed_gives_the_same_scenes(train: ModuleType) -> None:
    one, other = (next(train.scenes(5)) for _ in range(2))
    assert one.image.tobytes() == other.image.tobytes()
    assert np.array_equal(one.class_map, other.class_map)
    assert next(train.scenes(6)).image.tobytes() != one.image.tobytes()


def test_the_held_out_scenes_are_of_other_columns_than_those_trained_on(train: ModuleType) -> None:
    for trained_on, held_out in zip(train.photos(False), train.photos(True), strict=True):
        assert trained_on.shape == (512, train.TRAINED_ON)
        assert held_out.shape == (512, 512 - train.TRAINED_ON)
        assert not np.shares_memory(trained_on, held_out)


def test_the_held_out_scenes_have_each_texture_about_as_often(train: ModuleType) -> None:
    shares = np.bincount(np.concatenate([scene.class_map.ravel() for scene in train.held_out_scenes()]))
    assert len(shares) == 3
    assert (shares / shares.sum()).min() > 0.25


# --- mean intersection over union


def test_the_mean_is_over_classes_and_not_over_pixels(train: ModuleType) -> None:
    """Class 0: 2 of 4 pixels in either; class 1: 5 of 7; class 2: 1 of 1."""
    known = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 2])
    found = np.array([0, 0, 1, 0, 1, 1, 1, 1, 1, 2])
    assert train.mean_iou([found], [known]) == pytest.approx((2 / 4 + 5 / 7 + 1) / 3)


def test_the_pixels_of_all_images_count_together(train: ModuleType) -> None:
    known = [np.array([[0, 0, 0]]), np.array([[0], [1]])]
    found = [np.array([[0, 0, 0]]), np.array([[1], [1]])]
    assert train.mean_iou(found, known) == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_a_class_that_is_nowhere_does_not_count_and_one_that_is_only_found_does(train: ModuleType) -> None:
    assert train.mean_iou([np.array([0, 2])], [np.array([0, 2])]) == 1
    assert train.mean_iou([np.array([0, 2])], [np.array([0, 0])]) == pytest.approx((1 / 2 + 0) / 2)


# --- training


@pytest.mark.slow
def test_training_gives_the_same_weights_every_time(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "BATCH", 2)
    first, second = (train.train(2).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_model_that_learned_too_little_is_not_written(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "train", lambda: train.network().eval())
    monkeypatch.setattr(train, "HELD_OUT", 4)
    with pytest.raises(SystemExit, match="nothing was written"):
        train.main(tmp_path / "textures.pth")
    assert not list(tmp_path.iterdir())


# --- the trained model, whose training takes four minutes of two cores


@pytest.mark.long
def test_the_mean_intersection_over_union_in_held_out_scenes_is_over_90_percent(
    train: ModuleType, model: Model
) -> None:
    scenes = train.held_out_scenes()
    found = [answer.class_map for answer in model.batch([scene.image for scene in scenes])]
    assert train.mean_iou(found, [scene.class_map for scene in scenes]) > 0.9


@pytest.mark.long
def test_the_class_maps_are_those_of_torchvision(train: ModuleType, textures: Path, model: Model) -> None:
    plain = train.network().eval()
    plain.load_state_dict(torch.load(textures / "textures.pth", weights_only=True))
    for scene in train.held_out_scenes()[:10]:
        assert (model(scene.image).class_map == train.segment(plain, scene)).mean() > 0.999


@pytest.mark.slow
def test_the_golden_images_are_held_out_scenes_with_their_class_maps(train: ModuleType) -> None:
    scenes = {scene.image.tobytes(): scene for scene in train.held_out_scenes()}
    classes = set()
    for golden in yaml.safe_load((FOLDER / "model.yaml").read_text())["golden"]:
        scene = scenes[Image.open(FOLDER / golden["image"]).tobytes()]
        class_map = np.asarray(Image.open(FOLDER / golden["class_map"]))
        assert np.array_equal(class_map, scene.class_map)
        classes |= set(np.unique(class_map).tolist())
    assert classes == {0, 1, 2}


@pytest.mark.long
def test_the_service_gives_the_class_map_of_a_held_out_scene(textures: Path, tmp_path: Path) -> None:
    golden = yaml.safe_load((textures / "model.yaml").read_text())["golden"][0]
    with serving(textures, tmp_path / "log") as address:
        reply = httpx.post(
            f"{address}/predict",
            files={"image": (textures / golden["image"]).read_bytes()},
            headers={"Accept": "image/png"},
            timeout=60,
        )
    found = np.asarray(Image.open(io.BytesIO(reply.content)))
    assert (found == np.asarray(Image.open(textures / golden["class_map"]))).mean() > 0.9
