"""import: a model archive of TorchServe becomes a folder that is served, and nothing of it runs."""

import io
import json
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from pthserve.files import card
from pthserve.images.spec import Spec
from pthserve.loading.load import load
from pthserve.options import ModelOptions

from ..files.archives import FORMATS, archive
from .called import called

pytestmark = pytest.mark.slow

CODE = b"""
open("it-ran", "w").close()
from torchvision.models.resnet import ResNet, BasicBlock

class ImageClassifier(ResNet):
    def __init__(self):
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=3)
"""
NAMES = {"0": "cat", "1": ["n02", "dog"], "2": "cow"}


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A fine-tuned ResNet-18 of three classes, as TorchServe's examples archive one."""
    torch.manual_seed(0)
    weights = torchvision.models.resnet18(num_classes=3).state_dict()
    return {
        "pets.pth": saved(weights),
        "index_to_name.json": json.dumps(NAMES).encode(),
        "model.py": CODE,
    }


@pytest.mark.parametrize("archive_format", FORMATS)
def test_an_archive_becomes_a_folder_with_weights_labels_and_the_handler_s_preprocessing(
    files: dict[str, bytes], tmp_path: Path, archive_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "archives").mkdir()
    source = archive(tmp_path / "archives", files, archive_format, modelFile="model.py")
    done = called("import", source)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pets: pets, resnet18, 3 classes\n")
    assert "Serve it with `pthserve serve pets`" in done.stdout
    folder = tmp_path / "pets"
    assert sorted(path.name for path in folder.iterdir()) == ["labels.json", "model.yaml", "pets.pth"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archives", "pets"]
    described = card.read(folder)
    assert (described.name, described.version) == ("pets", "1.0")
    assert described.labels == ("cat", "dog", "cow")
    assert described.spec == Spec(resize=256, crop=(224, 224))
    with load(str(folder), ModelOptions(engine="torch", precision="fp32")) as model:
        assert model.labels == ("cat", "dog", "cow")
    assert not (tmp_path / "it-ran").exists()


def test_the_card_says_where_it_is_from_and_what_may_be_stated(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    done = called("import", archive(tmp_path, files, modelFile="model.py"), "-o", tmp_path / "out")
    assert done.returncode == 0
    text = (tmp_path / "out" / "model.yaml").read_text()
    assert text.startswith("# From pets.mar, a model archive of TorchServe.\n")
    assert "# As TorchServe's handler image_classifier does it" in text
    assert "# architecture: model:ImageClassifier\n" in text
    assert yaml.safe_load(text)["preprocessing"]["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"handler": "my_handler.py"}, "The handler my_handler.py is code of your own"),
        ({"handler": "my_handler:entry"}, "The handler my_handler:entry is code of your own"),
        ({"handler": "base_handler"}, "takes tensors that clients have preprocessed"),
        ({"handler": "dali_image_classifier"}, "by a DALI pipeline"),
        ({"handler": None}, "names no handler"),
        ({"requirementsFile": "requirements.txt"}, "requirements.txt were not installed"),
        ({"configFile": "model-config.yaml"}, "The settings in model-config.yaml were not imported"),
    ],
)
def test_what_is_not_imported_is_named(
    files: dict[str, bytes], tmp_path: Path, model: dict[str, str], words: str
) -> None:
    done = called("import", archive(tmp_path, files, **model), "-o", tmp_path / "out")
    assert done.returncode == 0
    assert words in done.stdout
    stated = card.read(tmp_path / "out").spec is not None
    assert stated == ("handler" not in model), "only image_classifier states its preprocessing"


@pytest.mark.parametrize("handler", ["object_detector", "image_segmenter", "text_classifier"])
def test_what_classifies_no_images_is_refused(files: dict[str, bytes], tmp_path: Path, handler: str) -> None:
    done = called("import", archive(tmp_path, files, handler=handler), "-o", tmp_path / "out")
    assert done.returncode == 3
    assert f"its handler {handler}" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_file_is_refused_with_the_usual_message(tmp_path: Path) -> None:
    scripted = io.BytesIO()
    traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, scripted)
    source = archive(tmp_path, {"pets.pt": scripted.getvalue()}, serializedFile="pets.pt")
    done = called("import", source, "-o", tmp_path / "out")
    assert done.returncode == 3
    assert "is a TorchScript archive, which carries code" in done.stderr
    assert f"{source}/pets.pt" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets.mar"]


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "it-ran"), "w"))  # type: ignore[return-value]

    source = archive(tmp_path, {"pets.pth": saved({"model": Evil()})})
    done = called("import", source, "-o", tmp_path / "out")
    assert done.returncode == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets.mar"]


def test_an_eager_model_that_is_not_recognised_is_written_with_what_to_do(tmp_path: Path) -> None:
    weights = {"body.weight": torch.zeros(4, 3, 3, 3), "top.weight": torch.zeros(2, 4)}
    code = b"import torch\nclass Tiny(torch.nn.Module):\n    pass\n"
    source = archive(tmp_path, {"pets.pth": saved(weights), "tiny.py": code}, modelFile="tiny.py")
    done = called("import", source, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "architecture not known yet" in done.stdout
    assert "`architecture: tiny:Tiny`" in done.stdout
    assert "`--allow-code tiny`" in done.stdout
    assert not (tmp_path / "out" / "tiny.py").exists()


def test_labels_of_other_classes_are_said_and_the_folder_is_written(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    other = {**files, "index_to_name.json": b'{"0": "cat", "1": "dog", "2": "cow", "4": "hen"}'}
    done = called("import", archive(tmp_path, other), "-o", tmp_path / "out")
    assert done.returncode == 0
    assert "has no label for 3" in done.stdout
    assert f"{tmp_path / 'out' / 'model.yaml'}: there are 5 labels" in done.stdout


def test_what_is_there_is_left_alone(files: dict[str, bytes], tmp_path: Path) -> None:
    source = archive(tmp_path, files)
    (tmp_path / "out").mkdir()
    assert called("import", source, "-o", tmp_path / "out").returncode == 0
    before = (tmp_path / "out" / "model.yaml").read_text()
    done = called("import", source, "-o", tmp_path / "out")
    assert done.returncode == 3
    assert "exists already; choose another folder" in done.stderr
    assert (tmp_path / "out" / "model.yaml").read_text() == before


def test_a_name_that_is_no_folder_s_needs_the_option(files: dict[str, bytes], tmp_path: Path) -> None:
    done = called("import", archive(tmp_path, files, modelName="../pets"))
    assert done.returncode == 3
    assert "cannot be that of a folder; use --output" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets.mar"]


def test_inspect_of_an_archive_points_to_import(files: dict[str, bytes], tmp_path: Path) -> None:
    source = archive(tmp_path, files)
    done = called("inspect", source)
    assert done.returncode == 3
    assert "`pthserve import`" in done.stderr
