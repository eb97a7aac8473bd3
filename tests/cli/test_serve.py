"""serve: a `.pth` is a service."""

import json
import math
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from torch import nn
from torchvision import transforms

from ..running import Running, running

pytestmark = pytest.mark.slow


class CustomModel(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.resnet18 = torchvision.models.resnet18()
        self.resnet18.fc = nn.Linear(self.resnet18.fc.in_features, num_classes)

    def forward(self, x: torch.Tensor) -> Any:
        return self.resnet18(x)


def ask(address: str, image: Path) -> httpx.Response:
    return httpx.post(f"{address}/predict", files={"image": image.read_bytes()}, timeout=60)


def test_each_digit_is_told_and_answered_as_plain_pytorch_does(served_digits: str, digits: Path) -> None:
    model = CustomModel()
    model.load_state_dict(torch.load(digits / "digits.pth", weights_only=True))
    model.eval()
    preprocess = transforms.Compose(
        [
            transforms.Resize(64),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    fp32 = httpx.get(f"{served_digits}/info").json()["precision"] == "fp32"
    for golden in yaml.safe_load((digits / "model.yaml").read_text())["golden"]:
        answer = ask(served_digits, digits / golden["image"]).json()
        with torch.inference_mode():
            logits = model(preprocess(Image.open(digits / golden["image"]).convert("RGB"))[None])
        assert answer["class_index"] == golden["class_index"]
        assert len(answer["probabilities"]) == 10
        assert math.isclose(sum(answer["probabilities"]), 1, abs_tol=1e-5)
        assert answer["probabilities"] == pytest.approx(
            logits.softmax(1)[0].tolist(), abs=1e-5 if fp32 else 0.02
        )


@pytest.mark.parametrize(("image", "label"), [("coffee", "espresso"), ("chelsea", "Egyptian cat")])
def test_the_demo_knows_what_is_in_a_photo(demo: str, imagenet: Path, image: str, label: str) -> None:
    answer = ask(demo, imagenet / "golden" / f"{image}.jpg").json()
    assert answer["label"] == label
    assert len(answer["probabilities"]) == 1000


def test_curl_is_enough_of_a_client(served_digits: str, digits: Path) -> None:
    command = [
        "curl",
        "-sS",
        "--fail",
        "-F",
        f"image=@{digits / 'golden' / '4.png'}",
        f"{served_digits}/predict",
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["class_index"] == 4


def test_golden_images_agreed(demo: str) -> None:
    assert httpx.get(f"{demo}/info").json()["golden"] == {"images": 4, "result": "agreed"}


@pytest.mark.parametrize("until", [Running.until_listening, Running.until_ready])
def test_an_interrupt_ends_it_with_0_and_without_a_word_of_a_library(
    until: Callable[[Running], None], digits: Path, tmp_path: Path
) -> None:
    with running(digits, tmp_path / "log", until=until) as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(60) == 0

    assert all(re.match(r"[0-9:.]+ (info|warning) ", line) for line in service.log.read_text().splitlines())
