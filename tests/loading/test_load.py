"""Anything that a user may name becomes a model."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from pthserve.errors import CardError, WeightsError
from pthserve.images.preprocess import normalise
from pthserve.loading.golden import check_golden
from pthserve.loading.load import load
from pthserve.planning import agreement
from pthserve.settings import Settings

QUICK = Settings(engine="torch", precision="fp32", device="cpu", tune_budget=0, threads=1)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_1(num_classes=3).eval()


@pytest.fixture
def folder(tmp_path: Path, module: nn.Module) -> Path:
    torch.save(module.state_dict(), tmp_path / "animals.pth")
    return tmp_path


def card(folder: Path, text: str) -> Path:
    (folder / "model.yaml").write_text(text)
    return folder


def test_a_bare_file_is_served_with_what_is_usual(folder: Path, module: nn.Module) -> None:
    model = load(str(folder / "animals.pth"), QUICK)
    assert (model.name, model.version, model.architecture) == ("animals", "1", "squeezenet1_1")
    assert model.labels == ("0", "1", "2")
    assert model.spec.assumed
    assert (model.spec.resize, model.spec.crop) == (256, (224, 224))
    images = agreement.sample_images(model.spec)[:2]
    with torch.inference_mode():
        expected = module(torch.from_numpy(normalise(images, model.spec))).numpy()
    np.testing.assert_allclose(model.forward(images), expected, atol=1e-4)


def test_a_folder_is_served_as_its_card_says(folder: Path) -> None:
    text = "name: zoo\nversion: '7'\nlabels: [cat, dog, owl]\npreprocessing: {resize: 80, crop: 64}\n"
    model = load(str(card(folder, text)), QUICK)
    assert (model.name, model.version, model.labels) == ("zoo", "7", ("cat", "dog", "owl"))
    assert not model.spec.assumed
    assert model.spec.crop == (64, 64)


def test_a_name_in_the_settings_is_the_model_s(folder: Path) -> None:
    settings = QUICK.model_copy(update={"name": "mine"})
    assert load(str(folder), settings).name == "mine"


def test_how_far_the_reading_is_can_be_followed(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(str(folder), QUICK, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == (folder / "animals.pth").stat().st_size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: [cat, dog]", "2 labels, and the model tells 3 classes apart"),
        (
            "preprocessing: {resize: 80, crop: 64, mean: [0.5], std: [0.5]}",
            "1 channels, and the model takes 3",
        ),
        ("golden: [{image: broken.png, class_index: 0}]", "broken.png: the golden image cannot be read"),
    ],
)
def test_a_card_that_does_not_fit_its_weights_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(CardError, match=message):
        load(str(card(folder, text)), QUICK)


def test_weights_that_are_pinned_to_others_are_refused(folder: Path) -> None:
    with pytest.raises(WeightsError, match="SHA-256"):
        load(str(card(folder, f"sha256: {'ab' * 32}")), QUICK)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.pth"):
        load(str(tmp_path / "nothing.pth"), QUICK)


def test_the_demo_knows_an_espresso(imagenet: Path) -> None:
    model = load(str(imagenet), QUICK.model_copy(update={"allow_code": "efficientnet_lite_pytorch"}))
    assert check_golden(model, 0.02).agrees
    assert model.labels[model.golden[0].class_index] == "espresso"
