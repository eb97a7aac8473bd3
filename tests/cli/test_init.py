"""init: a card with all that was inferred, in which what was assumed is a comment with its alternatives."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from pthserve.files import card
from pthserve.loading.load import Built, build
from pthserve.options import ModelOptions

from .called import called

pytestmark = pytest.mark.slow


def built(folder: Path) -> Built:
    return build(str(folder), ModelOptions())


def uncertain(folder: Path) -> list[str]:
    return [value.subject for value in built(folder).inferred if value.uncertain]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ResNet-18 for grey images with a head of two linear layers: much of it is assumed."""
    torch.manual_seed(0)
    module = torchvision.models.resnet18()
    module.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    module.fc = torch.nn.Sequential(torch.nn.Linear(512, 16), torch.nn.GELU(), torch.nn.Linear(16, 3))
    folder = tmp_path / "pets"
    folder.mkdir()
    torch.save(module.state_dict(), folder / "pets.pth")
    return folder


def test_what_the_file_tells_is_stated_and_what_is_assumed_is_not(folder: Path) -> None:
    before = uncertain(folder)
    assert before == ["architecture", "first layer", "activation", "preprocessing", "task", "labels"]
    done = called("init", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{folder / 'model.yaml'}: written\n")
    assert done.stdout.count("Not stated yet: ") == 6
    text = (folder / "model.yaml").read_text()
    assert yaml.safe_load(text) == {
        "name": "pets",
        "version": "1",
        "weights": "pets.pth",
    }
    assert uncertain(folder) == before, "the service goes on to warn"
    assert max(map(len, text.splitlines())) <= 130


def test_each_commented_line_is_one_that_a_card_takes(folder: Path) -> None:
    called("init", folder)
    text = (folder / "model.yaml").read_text()
    plain = text.split("\n\n")
    assert any("# Activation, assumed: ReLU" in block for block in plain)
    for block in plain:
        lines = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# head: ")]
        lines += [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# first_layer:")]
        for line in lines:
            (folder / "model.yaml").write_text(line)
            card.read(folder)


def test_the_lines_that_are_uncommented_settle_what_was_assumed(folder: Path) -> None:
    called("init", folder)
    file = folder / "model.yaml"
    assumed = built(folder)
    text = file.read_text().replace("# head: {activation: gelu}", "head: {activation: gelu}")
    text = text.replace("# first_layer: {stride: 2, padding: 3}", "first_layer: {stride: 2, padding: 3}")
    start = text.index("# preprocessing:")
    end = text.index("\n\n", start)
    block = text[start:end].replace("\n# ", "\n").removeprefix("# ")
    (folder / "labels.txt").write_text("cat\ndog\ncow\n")
    text = text[:start] + block + text[end:]
    for line in ("labels: labels.txt", "architecture: resnet18"):
        text = text.replace(f"# {line}", line)
    text += "\ntask: classification\n"
    file.write_text(text)
    after = built(folder)
    assert uncertain(folder) == []
    assert after.spec.to_dict() == assumed.spec.to_dict() | {"assumed": False}
    assert after.labels == ("cat", "dog", "cow")


def test_a_card_that_is_there_stays_as_it_is(folder: Path) -> None:
    file = folder / "model.yaml"
    file.write_text("# mine\nname: felines\npreprocessing: {exif: true}\n")
    done = called("init", folder)
    assert done.returncode == 3
    assert "exists already; --force keeps its lines" in done.stderr
    assert file.read_text() == "# mine\nname: felines\npreprocessing: {exif: true}\n"


def test_force_keeps_the_lines_that_are_there_and_adds_the_others(folder: Path) -> None:
    file = folder / "model.yaml"
    own = "# mine\nname: felines  # as we call them\npreprocessing: {exif: true}\n"
    file.write_text(own)
    done = called("init", folder, "--force")
    assert (done.returncode, done.stderr) == (0, "")
    text = file.read_text()
    assert text.startswith(own)
    assert yaml.safe_load(text) == {
        "name": "felines",
        "preprocessing": {"exif": True},
        "version": "1",
        "weights": "pets.pth",
    }
    assert built(folder).spec.exif
    assert called("init", folder, "--force").returncode == 0
    assert yaml.safe_load(file.read_text()) == yaml.safe_load(text)


def test_another_file_can_be_named(folder: Path, tmp_path: Path) -> None:
    assert called("init", folder / "pets.pth", "-o", tmp_path / "draft.yaml").returncode == 0
    assert not (folder / "model.yaml").exists()
    assert yaml.safe_load((tmp_path / "draft.yaml").read_text())["weights"] == "pets.pth"


def test_the_card_of_other_weights_is_left_alone(folder: Path) -> None:
    (folder / "dogs.pth").write_bytes((folder / "pets.pth").read_bytes())
    (folder / "model.yaml").write_text("weights: dogs.pth\n")
    done = called("init", folder / "pets.pth", "--force")
    assert done.returncode == 3
    assert "describes other weights, dogs.pth" in done.stderr
    assert (folder / "model.yaml").read_text() == "weights: dogs.pth\n"


def test_a_card_that_states_all_gets_nothing_that_is_assumed(digits: Path, tmp_path: Path) -> None:
    done = called("init", digits, "-o", tmp_path / "draft.yaml")
    assert done.returncode == 0, done.stderr
    assert "Not stated yet" not in done.stdout
    text = (tmp_path / "draft.yaml").read_text()
    assert "assumed:" not in text
    assert json.dumps(yaml.safe_load(text)["weights"]) == '"digits.pth"'
