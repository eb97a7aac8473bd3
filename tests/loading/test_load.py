"""Anything that a user may name becomes a model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from pthserve.certainty import Inferred, Origin
from pthserve.errors import CardError, WeightsError
from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec
from pthserve.loading.golden import check_golden
from pthserve.loading.load import build, load
from pthserve.planning import crops
from pthserve.settings import Settings
from pthserve.zoos.torchvision import TORCHVISION

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
    images = crops.sample_images(model.spec)[:2]
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
    seen: list[tuple[int, int | None]] = []
    load(str(folder), QUICK, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == (folder / "animals.pth").stat().st_size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: [cat, dog]", "2 labels, but the model has 3 outputs"),
        (
            "preprocessing: {resize: 80, crop: 64, mean: [0.5], std: [0.5]}",
            "1 channels, but the model needs 3",
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


@pytest.mark.slow
def test_the_demo_knows_an_espresso(imagenet: Path) -> None:
    model = load(str(imagenet), QUICK.model_copy(update={"allow_code": "efficientnet_lite_pytorch"}))
    assert check_golden(model, 0.02).agrees
    assert model.labels[model.golden[0].class_index] == "espresso"


# --- preprocessing that the card leaves out


def spec_of(folder: Path, name: str, text: str = "", **kwargs: object) -> tuple[Spec, Inferred]:
    """The spec of an untrained model of torchvision's with the card `text`, and what it rests on."""
    state_dict = TORCHVISION.blank(name, num_classes=3, **kwargs).state_dict()
    zeros = {key: torch.zeros((), dtype=t.dtype).expand(t.shape).clone() for key, t in state_dict.items()}
    torch.save(zeros, folder / "animals.pth")
    built = build(str(card(folder, text)), QUICK)
    (inferred,) = (one for one in built.inferred if one.subject == "preprocessing")
    return built.spec, inferred


@pytest.mark.slow
def test_an_architecture_brings_its_own_preset(tmp_path: Path) -> None:
    spec, inferred = spec_of(tmp_path, "efficientnet_b3")
    assert spec == Spec(320, (300, 300), "bicubic", assumed=True)
    assert inferred.origin is Origin.DEFAULT
    assert inferred.setting == 'preprocessing: {resize: 320, crop: 300, interpolation: "bicubic"}'
    card(tmp_path, inferred.setting)
    stated = build(str(tmp_path), QUICK)
    assert stated.spec == replace(spec, assumed=False)
    assert [one.origin for one in stated.inferred if one.subject == "preprocessing"] == [Origin.CARD]


@pytest.mark.slow
def test_a_card_without_sizes_changes_of_the_preset_what_it_states(tmp_path: Path) -> None:
    spec, inferred = spec_of(tmp_path, "efficientnet_b3", "preprocessing: {mean: [0.5, 0.5, 0.5]}")
    assert spec == Spec(320, (300, 300), "bicubic", mean=(0.5, 0.5, 0.5), assumed=True)
    assert inferred.uncertain
    spec, _ = spec_of(tmp_path, "efficientnet_b3", "preprocessing: {interpolation: bilinear}")
    assert spec == Spec(320, (300, 300), "bilinear", assumed=True)


@pytest.mark.slow
def test_a_preset_is_scaled_to_another_image_size(tmp_path: Path) -> None:
    spec, inferred = spec_of(tmp_path, "vit_l_16", image_size=112)
    assert spec == Spec(121, (112, 112), assumed=True)
    assert inferred.origin is Origin.ASSUMED


@pytest.mark.slow
def test_a_preset_for_grey_images_has_the_averages_of_its_channels(tmp_path: Path) -> None:
    module = torchvision.models.resnet18(num_classes=3)
    module.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    torch.save(module.state_dict(), tmp_path / "x-ray.pth")
    built = build(str(tmp_path), QUICK)
    assert built.spec == Spec(mean=(0.449,), std=(0.226,), assumed=True)
    assert [one.origin for one in built.inferred if one.subject == "preprocessing"] == [Origin.ASSUMED]
