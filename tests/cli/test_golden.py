"""golden: what a model must answer, written into its card and checked."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from pthserve.files import card

from .called import called

pytestmark = pytest.mark.slow


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def golden() -> Run:
    """Runs the command; its exit code, what it printed, and what it complained of."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        done = called("golden", *arguments, "--engine", "torch")
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def model(digits: Path, tmp_path: Path) -> Path:
    """The digits' folder, without golden images in its card."""
    for name in ("digits.pth", "golden"):
        (tmp_path / name).symlink_to(digits / name)
    fields = yaml.safe_load((digits / "model.yaml").read_text())
    del fields["golden"]
    (tmp_path / "model.yaml").write_text(f"# mine\n{yaml.safe_dump(fields)}")
    (tmp_path / "images").mkdir()
    for digit in (3, 8):
        (tmp_path / "images" / f"{digit}.png").write_bytes((digits / "golden" / f"{digit}.png").read_bytes())
    return tmp_path


def test_what_is_written_is_agreed_to_and_the_rest_of_the_card_stays(golden: Run, model: Path) -> None:
    before = card.read(model)
    code, told, trouble = golden(model, model / "images" / "3.png", model / "images" / "8.png")
    assert code == 0, trouble
    assert f"Recorded in {model / 'model.yaml'}" in told
    after = card.read(model)
    assert [one.class_index for one in after.golden] == [3, 8]
    assert all(one.probability and one.probability > 0.9 for one in after.golden)
    assert (after.labels, after.spec, after.weights) == (before.labels, before.spec, before.weights)
    assert (model / "model.yaml").read_text().startswith("# mine")
    assert "images/3.png" in (model / "model.yaml").read_text()
    code, told, trouble = golden(model)
    assert (code, trouble) == (0, "")
    assert "All 2 golden images pass; the largest difference is" in told


def test_a_golden_image_without_a_probability_is_held_to_its_class(
    golden: Run, digits: Path, model: Path
) -> None:
    golden(model, model / "images" / "3.png")
    (written,) = card.read(model).golden
    assert written.probability
    code, told, _ = golden(digits)
    assert code == 0
    assert "All 10 golden images pass; the model card has no probabilities to compare" in told
    row = next(line for line in told.splitlines() if "3.png" in line)
    assert f"{100 * written.probability:.1f} %" in row


def test_other_weights_disagree_with_exit_code_4_and_the_card_stays(golden: Run, model: Path) -> None:
    golden(model, model / "images" / "3.png")
    weights = torch.load(model / "digits.pth", weights_only=True)
    bias = next(name for name in weights if name.endswith("fc.bias"))
    weights[bias] = weights[bias] - 100 * torch.eye(10)[3]
    (model / "digits.pth").unlink()
    torch.save(weights, model / "digits.pth")
    written = (model / "model.yaml").read_text()
    code, _, trouble = golden(model)
    assert code == 4
    assert "3.png: class" in trouble
    assert (model / "model.yaml").read_text() == written


def test_what_cannot_be_a_golden_image_is_said_and_nothing_written(
    golden: Run, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = (model / "model.yaml").read_text()
    outside = tmp_path_factory.mktemp("elsewhere") / "3.png"
    outside.write_bytes((model / "images" / "3.png").read_bytes())
    text = model / "images" / "text.png"
    text.write_text("no image")
    for image, words in ((outside, "copy it there"), (text, "not a supported image")):
        code, _, trouble = golden(model, image)
        assert code == 1
        assert words in trouble
    assert "no golden images yet" in golden(model)[2]
    assert (model / "model.yaml").read_text() == written


def test_a_card_of_other_weights_is_left_alone(golden: Run, model: Path) -> None:
    other = model / "other.pth"
    other.write_bytes((model / "digits.pth").read_bytes())
    written = (model / "model.yaml").read_text()
    code, _, trouble = golden(other, model / "images" / "3.png")
    assert code == 1
    assert "describes different weights" in trouble
    assert (model / "model.yaml").read_text() == written
