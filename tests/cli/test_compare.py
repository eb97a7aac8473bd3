"""compare: the user's script beside a model, as a table or JSON, and what the exit code says."""

import json
import textwrap
from pathlib import Path

import pytest
import yaml

from pthserve.exits import DIFFERENT

from .called import called

pytestmark = pytest.mark.slow

AS_TRAINED = """
from PIL import Image
from torchvision import transforms

prepare = transforms.Compose([
    lambda path: Image.open(path).convert("RGB"),
    transforms.Resize({size}),
    transforms.CenterCrop(64),
    transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
])
print("a script may print")
"""


def script(folder: Path, text: str) -> str:
    (folder / "train.py").write_text(textwrap.dedent(text))
    return f"{folder / 'train.py'}:prepare"


@pytest.fixture
def images(digits: Path, tmp_path: Path) -> list[Path]:
    """Two digits, on paper that is not square."""
    from PIL import Image

    made = []
    for digit in (3, 8):
        image = Image.open(digits / "golden" / f"{digit}.png").convert("RGB").resize((90, 120))
        made.append(tmp_path / f"{digit}.png")
        image.save(made[-1])
    return made


def test_both_agree_with_exit_code_0(digits: Path, images: list[Path], tmp_path: Path) -> None:
    done = called("compare", digits, script(tmp_path, AS_TRAINED.format(size=64)), *images)
    assert done.returncode == 0, done.stderr
    assert "Both agree on 2 images; the tensors differ by" in done.stdout
    assert "a script may print" in done.stderr
    assert "a script may print" not in done.stdout


def test_a_difference_is_shown_with_the_lines_that_mend_it(
    digits: Path, images: list[Path], tmp_path: Path
) -> None:
    name = script(tmp_path, AS_TRAINED.format(size=80))
    done = called("compare", digits, name, *images)
    assert done.returncode == DIFFERENT == 5
    assert "The first stage that differs is resize." in done.stdout
    assert f"in {digits / 'model.yaml'} both agree" in " ".join(done.stdout.split())
    lines = yaml.safe_load("preprocessing:" + done.stdout.rpartition("preprocessing:")[2])
    assert (lines["preprocessing"]["resize"], lines["preprocessing"]["crop"]) == (80, 64)
    card = yaml.safe_load((digits / "model.yaml").read_text()) | lines | {"golden": []}
    (tmp_path / "mended").mkdir()
    (tmp_path / "mended" / "digits.pth").symlink_to(digits / "digits.pth")
    (tmp_path / "mended" / "model.yaml").write_text(yaml.safe_dump(card))
    assert called("compare", tmp_path / "mended", name, *images).returncode == 0


def test_json_has_the_same(digits: Path, images: list[Path], tmp_path: Path) -> None:
    done = called("compare", digits, script(tmp_path, AS_TRAINED.format(size=80)), *images, "--json")
    assert done.returncode == DIFFERENT
    found = json.loads(done.stdout)
    assert (found["agrees"], found["first_difference"], found["images"]) == (False, "resize", 2)
    assert [stage["name"] for stage in found["stages"]] == ["decode", "resize", "crop", "normalise"]
    assert found["card"]["resize"] == 80
    assert found["levels"] > found["left"]


def test_a_script_that_fails_is_an_error_and_not_a_difference(
    digits: Path, images: list[Path], tmp_path: Path
) -> None:
    done = called("compare", digits, script(tmp_path, "def prepare(path): return 1 / 0"), *images)
    assert done.returncode == 1
    assert "train.py:prepare failed for" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_tolerance_of_many_grey_levels_takes_more(digits: Path, images: list[Path], tmp_path: Path) -> None:
    name = script(tmp_path, AS_TRAINED.format(size=65))
    assert called("compare", digits, name, *images).returncode == DIFFERENT
    assert called("compare", digits, name, *images, "--levels", "100").returncode == 0
