"""docs/migrating.md: its commands run as they stand there, and its card is one."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from pthserve.files.card_fields import Preprocessing
from pthserve.loading.load import build
from pthserve.options import ModelOptions

from ..comparison.photos import photos, turned
from ..files.archives import archive
from .called import called

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()
SCRIPT = """
from PIL import Image
from torchvision import transforms

def prepare(path):
    return transforms.ToTensor()(Image.open(path).convert("RGB").resize((224, 224)))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the commands of the page name, in the current folder."""
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), tmp_path / "model.pth")
    (tmp_path / "train.py").write_text(SCRIPT)
    (chelsea,) = photos(tmp_path, "chelsea")
    turned(chelsea).rename(tmp_path / "turned.jpg")
    chelsea.rename(tmp_path / "photo.jpg")
    archive(tmp_path, {"pets.pth": (tmp_path / "model.pth").read_bytes()})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_page_run(folder: Path) -> None:
    shown = re.findall(r"^\$ pthserve (.*)$", PAGE, re.MULTILINE)
    assert [line.split()[0] for line in shown] == ["compare", "init", "import", "serve"]
    codes = [called(*shlex.split(line)).returncode for line in shown if not line.startswith("serve")]
    assert codes == [5, 0, 0]
    (served,) = [line.split()[1] for line in shown if line.startswith("serve")]
    assert build(served, ModelOptions()).architecture.name == "squeezenet1_1"


def test_the_lines_of_the_page_are_those_of_a_card() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    stated = Preprocessing.model_validate(yaml.safe_load(example)["preprocessing"])
    rare = {"longest", "rounded", "pad", "sides"}  # detectors' alone
    assert stated.model_fields_set == set(Preprocessing.model_fields) - rare
