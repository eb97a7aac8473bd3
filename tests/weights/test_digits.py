"""weights/digits: trained here, on the class that its users have."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(train: ModuleType, digits: Path) -> torch.nn.Module:
    model = train.CustomModel()
    model.load_state_dict(torch.load(digits / "digits.pth", weights_only=True), strict=True)
    return model.eval()


def test_97_percent_of_the_held_out_images_are_right(train: ModuleType, model: torch.nn.Module) -> None:
    images, classes = train.tensors()
    _, held_out = train.split()
    assert train.accuracy(model, images[held_out], classes[held_out]) >= 0.97


def test_the_held_out_images_are_not_trained_on(train: ModuleType) -> None:
    trained_on, held_out = train.split()
    assert not set(trained_on) & set(held_out)
    assert len(held_out) == 360


def test_the_card_says_the_preprocessing_of_training(train: ModuleType, digits: Path) -> None:
    card = yaml.safe_load((digits / "model.yaml").read_text())
    assert card["preprocessing"] == {"resize": train.SIDE, "crop": train.SIDE}


def test_each_golden_image_is_a_held_out_image_of_its_class(train: ModuleType, digits: Path) -> None:
    images, classes = train.digits()
    _, held_out = train.split()
    for golden in yaml.safe_load((digits / "model.yaml").read_text())["golden"]:
        pixels = np.asarray(Image.open(digits / golden["image"]))
        same = [classes[i] for i in held_out if np.array_equal(pixels, np.asarray(images[i]))]
        assert same == [golden["class_index"]]


@pytest.mark.slow
def test_training_gives_the_same_weights_every_time(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "EPOCHS", 1)
    images, classes = train.tensors()
    first, second = (train.train(images[:96], classes[:96]).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_model_that_learned_too_little_is_not_written(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "train", lambda images, classes: train.CustomModel().eval())
    with pytest.raises(SystemExit, match="nothing was written"):
        train.main(tmp_path / "digits.pth")
    assert not list(tmp_path.iterdir())
