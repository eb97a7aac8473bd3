"""inspect: what is in a file, and how that was found out."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from .called import called

pytestmark = pytest.mark.slow


def inspect(*arguments: str | Path) -> str:
    done = called("inspect", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' weights without their card."""
    path = tmp_path_factory.mktemp("bare") / "mine.pth"
    path.symlink_to(digits / "digits.pth")
    return path


@pytest.fixture(scope="module")
def found(bare: Path) -> dict[str, Any]:
    return json.loads(inspect(bare, "--json"))


def test_json_names_architecture_classes_prefix_parameters_and_digest(
    found: dict[str, Any], bare: Path
) -> None:
    assert (found["architecture"], found["num_classes"], found["prefix"]) == ("resnet18", 10, "resnet18.")
    module = torchvision.models.resnet18(num_classes=10)
    assert found["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert found["sha256"] == hashlib.sha256(bare.read_bytes()).hexdigest()
    assert {"subject": "architecture", "value": "resnet18", "origin": "file"}.items() <= found["inferred"][
        0
    ].items()


def test_flops_are_those_of_the_literature(found: dict[str, Any]) -> None:
    # He et al. 2015 give 1.8 billion multiply-adds for ResNet-18 at 224; torchvision counts 1.814.
    assert found["flops"] == pytest.approx(2 * 1.814e9, rel=0.01)


def test_what_nobody_said_is_said_to_be_assumed(found: dict[str, Any], bare: Path, digits: Path) -> None:
    assert found["preprocessing"]["assumed"] is True
    assert "assumed" in inspect(bare)
    assert json.loads(inspect(digits, "--json"))["preprocessing"]["assumed"] is False


def test_what_is_wrapped_around_the_weights_is_named(tmp_path: Path) -> None:
    state = {
        f"module.{name}": tensor
        for name, tensor in torchvision.models.squeezenet1_1(num_classes=4).state_dict().items()
    }
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pt")
    found = json.loads(inspect(tmp_path / "checkpoint.pt", "--json"))
    assert (found["container"], found["prefix"], found["num_classes"]) == ("state_dict", "module.", 4)


def test_of_the_demo_it_tells_what_can_be_told_without_its_code(imagenet: Path) -> None:
    found = json.loads(inspect("demo", "--json"))
    assert (found["num_classes"], found["labels"][967]) == (1000, "espresso")
    assert found["architecture"] == "efficientnet_lite_pytorch:EfficientNet.from_name"
    assert (found["golden"], found["parameters"]) == (4, None)


def test_code_is_named_and_does_not_run_whatever_the_environment_allows(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text("raise SystemExit('was imported')")
    (tmp_path / "mine.pth").symlink_to(bare)
    (tmp_path / "model.yaml").write_text("architecture: theirs:Net\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PTHSERVE_ALLOW_CODE", "theirs")
    for source in (tmp_path, tmp_path / "mine.pth"):
        assert "names code: theirs:Net, which inspect does not run" in inspect(source)
