"""The key of a packed model: what decides what it is changes it, and nothing else does."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pthserve.errors import CardError, WeightsError
from pthserve.loading import cache_key
from pthserve.loading.cache_key import BESIDE, NOT_OF_A_PACK, key
from pthserve.options import ModelOptions
from pthserve.zoos import huggingface, image_processor, statements

from ..linear import noise, png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, with weights that nobody reads."""
    made = tmp_path / "model"
    (made / "golden").mkdir(parents=True)
    (made / "model.pth").write_bytes(b"weights")
    (made / "labels.txt").write_text("ant\nbee\n")
    (made / "golden" / "1.png").write_bytes(png(noise(1)))
    card(made)
    return made


def card(folder: Path, **fields: Any) -> None:
    values = {
        "name": "zoo",
        "weights": "model.pth",
        "labels": "labels.txt",
        "golden": [{"image": "golden/1.png", "class_index": 1}],
        **fields,
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(values))


def digest(folder: Path, **options: Any) -> str:
    return key(folder, ModelOptions(**options)).digest


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda folder: (folder / "model.pth").write_bytes(b"others"),
    "labels": lambda folder: (folder / "labels.txt").write_text("bee\nant\n"),
    "golden image": lambda folder: (folder / "golden" / "1.png").write_bytes(png(noise(2))),
    "golden answer": lambda folder: card(folder, golden=[{"image": "golden/1.png", "class_index": 0}]),
    "name of the weights": lambda folder: (
        (folder / "model.pth").rename(folder / "resnet18.pth"),
        card(folder, weights="resnet18.pth"),
    ),
    "preprocessing": lambda folder: card(folder, preprocessing={"resize": 40, "crop": 32}),
    "architecture": lambda folder: card(folder, architecture="resnet18"),
    **{
        f"a new {name}": lambda folder, name=name: (folder / name).write_text("{}")  # type: ignore[misc]
        for name in BESIDE
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_what_is_built_changes_the_key(folder: Path, change: str) -> None:
    before = digest(folder)
    CHANGES[change](folder)
    assert digest(folder) != before


def test_where_it_lies_and_when_it_was_written_do_not(folder: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    os.utime(elsewhere / "model.pth", (1, 1))
    (elsewhere / "notes.md").write_text("nothing that is read")
    assert digest(elsewhere) == digest(folder)


def test_options_count_unless_they_only_say_how_a_pack_is_run(folder: Path) -> None:
    before = digest(folder)
    running = {"threads": 3, "max_batch": 2, "tune_budget": 0.0, "precision": "bf16", "engine": "openvino"}
    for name, value in running.items():
        assert digest(folder, **{name: value}) == before
    building = {"tolerance": 0.5, "task": "multilabel", "architecture": "resnet18", "golden": "off"}
    for name, value in building.items():
        assert digest(folder, **{name: value}) != before
    assert digest(folder, sha256="0" * 64) != before
    assert ModelOptions.model_fields.keys() > NOT_OF_A_PACK


@pytest.mark.parametrize("precision", ["int8", "auto"])
@pytest.mark.parametrize("option", ["calibration", "validation"])
def test_images_that_engines_are_compared_on_count_at_any_precision(
    folder: Path, tmp_path: Path, option: str, precision: str
) -> None:
    (tmp_path / "photos").mkdir()
    options = {"precision": precision, option: tmp_path / "photos"}
    before = digest(folder, **options)
    (tmp_path / "photos" / "1.png").write_bytes(png(noise(1)))
    with_one = digest(folder, **options)
    assert with_one not in (before, digest(folder, precision=precision))
    assert digest(folder, **options) == with_one


def test_versions_and_the_processor_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(folder)
    with monkeypatch.context() as changed:
        changed.setattr(cache_key, "version", lambda name: "99")
        assert digest(folder) != before
    monkeypatch.setattr(cache_key, "cpu_flags", lambda: frozenset({"avx2"}))
    assert digest(folder) != before


def test_for_code_of_the_user_s_the_packages_count_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card(folder, architecture="net:Net")
    before = key(folder, ModelOptions(allow_code="net"))
    assert before.code == "net:Net"
    monkeypatch.syspath_prepend(str(folder))
    assert digest(folder, allow_code="net") != before.digest


def test_the_files_beside_the_weights_are_those_that_are_looked_for() -> None:
    assert set(BESIDE) == {huggingface.FILE, image_processor.FILE, statements.CONFIG, "adapter_config.json"}


def test_a_card_that_is_wrong_and_weights_that_are_missing_are_reported(folder: Path) -> None:
    (folder / "model.pth").unlink()
    with pytest.raises(WeightsError, match="does not exist"):
        digest(folder)
    (folder / "model.yaml").write_text("name: [")
    with pytest.raises(CardError, match="line"):
        digest(folder)
