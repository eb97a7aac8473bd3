"""What was built becomes a folder: the same bytes for the same input, or nothing."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pthserve.engines import quantized_graph
from pthserve.errors import CardError, EngineError, GoldenError, PackError
from pthserve.loading import packed
from pthserve.loading.golden import check_golden
from pthserve.loading.load import load
from pthserve.loading.loader import Loader
from pthserve.loading.model import Model
from pthserve.loading.pack import pack
from pthserve.planning import plan_files
from pthserve.settings import Settings
from pthserve.tasks.classification import softmax

from ..linear import noise
from ..zoo import CODE, LABELS, SPEC, tiny_folder

pytestmark = pytest.mark.slow

SETTINGS = Settings(threads=1, tune_budget=0.0, allow_code=CODE)
TORCH = SETTINGS.model_copy(update={"engine": "torch", "precision": "fp32", "device": "cpu"})


def asked(**values: Any) -> Settings:
    return SETTINGS.model_copy(update=values)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model; to be read only."""
    folder = tmp_path_factory.mktemp("made") / "pack"
    pack(str(source), folder, SETTINGS)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A model's folder to be spoilt, alone in a folder."""
    (tmp_path / "zoo").mkdir()
    return tiny_folder(tmp_path / "zoo")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    for number in range(20):
        Image.fromarray(noise(number)).save(folder / f"{number}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def probabilities(model: Model) -> Any:
    images = np.random.default_rng(3).integers(0, 256, (16, *SPEC.image_shape), np.uint8)
    return softmax(model.forward(images))


def test_the_same_model_makes_the_same_bytes(source: Path, made: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(source, tmp_path / "elsewhere"))
    pack(str(elsewhere), tmp_path / "again", SETTINGS)
    assert contents(tmp_path / "again") == contents(made)


def test_it_answers_as_the_model_it_was_made_from(source: Path, made: Path) -> None:
    expected = probabilities(load(str(source), TORCH))
    fp32 = load(str(made), asked(precision="fp32"))
    assert np.abs(probabilities(fp32) - expected).max() < 1e-5
    auto = load(str(made), SETTINGS)
    assert np.abs(probabilities(auto) - expected).max() < SETTINGS.tolerance


def test_the_answers_that_it_is_held_to_are_those_of_pytorch(source: Path, made: Path) -> None:
    images, expected = packed.read(made).proof()
    origin = load(str(source), TORCH)
    np.testing.assert_allclose(softmax(origin.forward(images)), expected, atol=1e-6)


def test_it_is_known_by_the_same_name_labels_and_digest(source: Path, made: Path) -> None:
    model, origin = load(str(made), SETTINGS), load(str(source), TORCH)
    for field in ("name", "version", "architecture", "parameters", "labels", "spec", "digest"):
        assert getattr(model, field) == getattr(origin, field)
    assert [one.image.parent for one in model.golden] == [made / "golden"] * 2
    assert check_golden(model, SETTINGS.tolerance).agrees


def test_images_that_keep_fractions_are_packed(own: Path, tmp_path: Path) -> None:
    with_preprocessing(own, resize=40, crop=32, antialias=False, rounded=False)
    pack(str(own), tmp_path / "pack", asked(golden="off"))
    assert packed.read(tmp_path / "pack").proof().images.dtype == np.float32
    found = probabilities(load(str(tmp_path / "pack"), asked(precision="fp32", golden="off")))
    expected = probabilities(load(str(own), TORCH.model_copy(update={"golden": "off"})))
    assert np.abs(found - expected).max() < 1e-5


def test_a_classifier_whose_images_are_not_cropped_is_refused(own: Path, tmp_path: Path) -> None:
    with_preprocessing(own, resize=40, crop=None)
    with pytest.raises(PackError, match="only PyTorch at fp32 runs a classifier whose images are not"):
        pack(str(own), tmp_path / "pack", asked(golden="off"))
    with pytest.raises(EngineError, match="are not cropped; leave out --engine and --precision"):
        load(str(own), asked(golden="off", precision="int8"))
    model = load(str(own), asked(golden="off"))
    assert (model.forward.name, model.forward.precision) == ("torch", "fp32")


def with_preprocessing(folder: Path, **values: Any) -> None:
    card = yaml.safe_load((folder / "model.yaml").read_text())
    (folder / "model.yaml").write_text(yaml.safe_dump({**card, "preprocessing": values}))


def test_it_says_what_made_it(made: Path) -> None:
    assert {"pthserve", "openvino", "torch", "torchvision"} <= packed.read(made).made_with.keys()


def test_a_plan_that_was_measured_goes_with_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pthserve.planning.tune.SLICE", 0.0)
    measured = load(str(source), asked(engine="openvino", precision="fp32", tune_budget=60.0)).plan
    plan_files.write(measured, tmp_path / "plan.json")
    assert pack(str(source), tmp_path / "pack", asked(plan=tmp_path / "plan.json")).plan == measured
    assert load(str(tmp_path / "pack"), SETTINGS).plan == measured


def test_int8_is_packed_when_asked_for_and_then_what_auto_takes(
    source: Path, tmp_path: Path, calibration: Path
) -> None:
    wanted = asked(precision="int8", calibration=calibration, tolerance=1.0)
    for name in ("pack", "again"):
        pack(str(source), tmp_path / name, wanted)
    assert contents(tmp_path / "pack") == contents(tmp_path / "again")
    assert {"int8.xml", "int8.bin"} <= contents(tmp_path / "pack").keys()
    model = load(str(tmp_path / "pack"), asked(tolerance=1.0))
    assert model.forward.precision == "int8"
    assert load(str(tmp_path / "pack"), asked(precision="fp32")).forward.precision == "fp32"
    expected = probabilities(load(str(source), TORCH))
    assert (probabilities(model).argmax(1) == expected.argmax(1)).mean() > 0.8
    with pytest.raises(EngineError, match="int8"):  # the guard is for int8 too
        pack(str(source), tmp_path / "strict", wanted.model_copy(update={"tolerance": 0.0}))


def test_int8_with_weights_of_8_bits_is_not_run_on_a_processor_whose_sums_saturate(
    source: Path, tmp_path: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_graph, "cpu_flags", lambda: frozenset({"avx2", "avx_vnni"}))
    pack(str(source), tmp_path / "pack", asked(precision="int8", calibration=calibration, tolerance=1.0))
    made = packed.read(tmp_path / "pack")
    assert made.int8 is not None
    assert made.int8.weight_bits == 8
    assert made.plan.precision == "int8"

    monkeypatch.setattr(quantized_graph, "cpu_flags", lambda: frozenset({"avx2"}))
    model = load(str(tmp_path / "pack"), SETTINGS)
    assert model.forward.precision != "int8"
    assert model.int8 is None
    expected = probabilities(load(str(source), TORCH))
    assert np.abs(probabilities(model) - expected).max() < SETTINGS.tolerance
    assert Loader(str(tmp_path / "pack"), SETTINGS)().forward.precision == model.forward.precision
    with pytest.raises(EngineError, match=r"weights of 8 bits.*this processor has neither.*--weight-bits 7"):
        load(str(tmp_path / "pack"), asked(precision="int8"))


# --- what is not made -------------------------------------------------------------------------------------


def test_what_is_there_stays_unless_it_is_a_pack(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years")
    with pytest.raises(PackError, match="not a packed model"):
        pack(str(source), tmp_path / "thesis", SETTINGS)
    assert contents(tmp_path / "thesis") == {"chapter.txt": b"years"}


def test_a_pack_that_is_there_is_replaced_and_nothing_lies_beside_it(
    made: Path, own: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(made, tmp_path / "pack"))
    new = pack(str(tiny_folder(own, seed=1)), output, SETTINGS)
    assert packed.read(output).digest == new.digest != packed.read(made).digest
    assert new.folder == output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pack", "zoo"]


def test_golden_images_that_disagree_leave_nothing(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = own / "model.yaml"
    fields = yaml.safe_load(card.read_text())
    fields["golden"][0]["class_index"] = (fields["golden"][0]["class_index"] + 1) % len(LABELS)
    card.write_text(yaml.safe_dump(fields))
    with pytest.raises(GoldenError, match=r"1\.png: class"):
        pack(str(own), tmp_path / "pack", SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]
    with caplog.at_level(logging.WARNING, "pthserve"):
        pack(str(own), tmp_path / "pack", asked(golden="warn"))
    assert "1.png: class" in caplog.text
    assert not check_golden(load(str(tmp_path / "pack"), SETTINGS), SETTINGS.tolerance).agrees


def test_a_golden_image_that_is_missing_leaves_nothing(own: Path, tmp_path: Path) -> None:
    (own / "golden" / "1.png").unlink()
    with pytest.raises(CardError, match=r"1\.png"):
        pack(str(own), tmp_path / "pack", SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]
