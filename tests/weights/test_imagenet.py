"""weights/imagenet: real weights, and answers that plain PyTorch and torchvision give."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torchvision import transforms
from torchvision.models import ResNet18_Weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def card(imagenet: Path) -> dict[str, Any]:
    return yaml.safe_load((imagenet / "model.yaml").read_text())


@pytest.fixture
def make(imagenet: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("imagenet_make", imagenet / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_golden_answers_are_those_of_plain_pytorch(imagenet: Path, card: dict[str, Any]) -> None:
    model = EfficientNet.from_name(**card["kwargs"])
    model.load_state_dict(torch.load(imagenet / card["weights"], weights_only=True))
    model.eval()
    preprocess = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    assert card["golden"]
    for golden in card["golden"]:
        image = preprocess(Image.open(imagenet / golden["image"]).convert("RGB"))
        with torch.inference_mode():
            probabilities = model(image[None]).softmax(1)[0]
        assert probabilities.argmax() == golden["class_index"]
        assert probabilities.max().item() == pytest.approx(golden["probability"], abs=1e-3)


def test_the_golden_images_show_what_their_labels_say(imagenet: Path, card: dict[str, Any]) -> None:
    labels = (imagenet / "labels.txt").read_text().splitlines()
    assert {Path(golden["image"]).stem: labels[golden["class_index"]] for golden in card["golden"]} == {
        "coffee": "espresso",
        "chelsea": "Egyptian cat",
        "camera": "tripod",
        "rocket": "missile",
    }


def test_the_labels_are_torchvisions(imagenet: Path) -> None:
    labels = (imagenet / "labels.txt").read_text().splitlines()
    assert labels == ResNet18_Weights.DEFAULT.meta["categories"]


def test_the_card_and_the_script_pin_the_same_digest(make: ModuleType, card: dict[str, Any]) -> None:
    assert card["sha256"] == make.SHA256


def test_weights_other_than_the_known_ones_are_not_written(
    make: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(make, "SHA256", "0" * 64)
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    with pytest.raises(SystemExit, match="not the known ones"):
        make.main()
    assert not list(tmp_path.iterdir())
