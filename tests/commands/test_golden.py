"""golden: what a model must answer, written into its card and checked."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pthserve.model import card

pytestmark = pytest.mark.slow


def golden(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pthserve", "golden", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


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


def test_what_is_written_is_agreed_to_and_the_rest_of_the_card_stays(model: Path) -> None:
    before = card.read(model)
    done = golden(model, model / "images" / "3.png", model / "images" / "8.png")
    assert done.returncode == 0, done.stderr
    after = card.read(model)
    assert [one.class_index for one in after.golden] == [3, 8]
    assert all(one.probability and one.probability > 0.9 for one in after.golden)
    assert (after.labels, after.spec, after.weights) == (before.labels, before.spec, before.weights)
    assert (model / "model.yaml").read_text().startswith("# mine")
    assert "images/3.png" in (model / "model.yaml").read_text()
    done = golden(model)
    assert (done.returncode, "All 2 agree" in done.stdout) == (0, True), done.stderr


def test_other_weights_disagree_with_exit_code_4_and_the_card_stays(model: Path) -> None:
    golden(model, model / "images" / "3.png")
    written = (model / "model.yaml").read_text()
    weights = torch.load(model / "digits.pth", weights_only=True)
    bias = next(name for name in weights if name.endswith("fc.bias"))
    weights[bias] = weights[bias] - 100 * torch.eye(10)[3]
    (model / "digits.pth").unlink()
    torch.save(weights, model / "digits.pth")
    (model / "model.yaml").write_text(
        "\n".join(line for line in written.splitlines() if not line.startswith("sha256"))
    )
    done = golden(model)
    assert done.returncode == 4
    assert "3.png: class" in done.stderr


def test_what_cannot_be_a_golden_image_is_said_and_nothing_written(
    model: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = (model / "model.yaml").read_text()
    outside = tmp_path_factory.mktemp("elsewhere") / "3.png"
    outside.write_bytes((model / "images" / "3.png").read_bytes())
    text = model / "images" / "text.png"
    text.write_text("no image")
    for image, words in ((outside, "copy it there"), (text, "not an image")):
        done = golden(model, image)
        assert done.returncode == 1
        assert words in done.stderr
    assert "no golden images yet" in golden(model).stderr
    assert (model / "model.yaml").read_text() == written
