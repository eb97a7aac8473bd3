"""A packed model is read whole or not at all, and runs without PyTorch."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pthserve.certainty import Inferred, Origin
from pthserve.engines.openvino_engine import OpenVINOEngine, precisions
from pthserve.errors import EngineError, PackError, WeightsError
from pthserve.images.preprocess import normalise
from pthserve.loading import packed
from pthserve.loading.golden import check_golden
from pthserve.loading.load import build, load
from pthserve.loading.manifest import FORMAT
from pthserve.planning.plan import Plan
from pthserve.settings import Settings
from pthserve.tasks.classification import softmax

from ..linear import LABELS
from ..packs import SPEC, tiny_pack

SETTINGS = Settings(threads=1, tune_budget=0.0)


def asked(**values: Any) -> Settings:
    return SETTINGS.model_copy(update=values)


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pthserve.planning.tune.SLICE", 0.0)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = tiny_pack(tmp_path / "pack", plan=Plan("openvino", "bf16", threads=3, reason="so"))
    assert packed.read(tmp_path / "pack") == written


def test_what_the_model_s_answers_rest_on_is_packed_with_it(tmp_path: Path) -> None:
    told = (Inferred("activation", "ReLU", Origin.ASSUMED, "head: {activation: relu}"),)
    tiny_pack(tmp_path / "pack", inferred=told)
    assert load(str(tmp_path / "pack"), SETTINGS).inferred == told


def test_the_same_model_is_written_as_the_same_bytes(made: Path, tmp_path: Path) -> None:
    tiny_pack(tmp_path / "again")
    assert packed.sums(tmp_path / "again") == packed.sums(made)
    tiny_pack(tmp_path / "other", seed=1)
    assert packed.sums(tmp_path / "other")["model.bin"] != packed.sums(made)["model.bin"]


def test_its_sums_are_what_sha256sum_checks(made: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": OK") == sum(file.is_file() for file in made.rglob("*")) - 1


# --- what is not as it was packed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("model.xml", "model.bin", "manifest.json", "golden/1.png", "proof/images.npy"),
        "proof/probabilities.npy",
    ],
)
def test_one_changed_byte_is_refused_by_name(pack: Path, name: str) -> None:
    data = bytearray((pack / name).read_bytes())
    data[len(data) // 2] ^= 1
    (pack / name).write_bytes(data)
    with pytest.raises(PackError, match=f"{name} was changed; copy it again"):
        packed.read(pack)


@pytest.mark.parametrize("name", ["model.bin", "manifest.json", "golden/1.png"])
def test_a_missing_file_is_refused_by_name(pack: Path, name: str) -> None:
    (pack / name).unlink()
    with pytest.raises(PackError, match=f"{name} is missing"):
        load(str(pack), SETTINGS)


def test_an_added_file_is_refused_by_name(pack: Path) -> None:
    (pack / "golden" / "mine.png").write_bytes(b"")
    with pytest.raises(PackError, match=r"golden/mine\.png is not of it"):
        load(str(pack), SETTINGS)


def test_changed_sums_are_refused(pack: Path) -> None:
    sums = pack / packed.SUMS
    sums.write_text(sums.read_text() + "\n")
    with pytest.raises(PackError, match="SHA256SUMS was changed"):
        packed.read(pack)
    sums.unlink()
    with pytest.raises(PackError, match="SHA256SUMS"):
        packed.read(pack)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_earlier_format_is_read_and_compared_with_fp32_again(pack: Path, number: int) -> None:
    manifest = json.loads((pack / packed.MANIFEST).read_text())
    assert manifest["format"] == FORMAT
    del manifest["plan"]["evidence"]
    (pack / packed.MANIFEST).write_text(json.dumps({**manifest, "format": number}))
    (pack / packed.SUMS).write_text(packed.lines(packed.sums(pack)))
    assert packed.read(pack).plan.evidence == ()
    model = load(str(pack), SETTINGS)
    assert model.plan.agreement is not None
    assert model.plan.agreement.precision == model.forward.precision


def test_a_later_format_is_refused_with_what_to_do(pack: Path) -> None:
    manifest = json.loads((pack / packed.MANIFEST).read_text())
    (pack / packed.MANIFEST).write_text(json.dumps({**manifest, "format": FORMAT + 1, "new": 1}))
    (pack / packed.SUMS).write_text(packed.lines(packed.sums(pack)))
    with pytest.raises(PackError, match=r"packed by pthserve 0, in a format that this version"):
        packed.read(pack)


def test_other_weights_than_the_pinned_ones_are_refused(made: Path) -> None:
    with pytest.raises(WeightsError, match=f"{'ab' * 32} is expected"):
        load(str(made), asked(sha256="ab" * 32))
    assert load(str(made), asked(sha256="0" * 64)).digest == "0" * 64


def test_it_is_no_weights_file(made: Path) -> None:
    with pytest.raises(PackError, match="already packed; give the original weights"):
        build(str(made), SETTINGS)


# --- what changes after it was read -----------------------------------------------------------------------


def truncated(file: Path) -> None:
    os.truncate(file, 0)


def overwritten(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("change", [truncated, overwritten, removed])
def test_what_becomes_of_the_graph_s_files_later_changes_no_answer_to_pixels_tensors_or_explain(
    made: Path, pack: Path, change: Callable[[Path], None]
) -> None:
    images, _ = packed.read(made).proof()
    tensors = normalise(images, SPEC)
    expected, changed = load(str(made), SETTINGS), load(str(pack), SETTINGS)
    for name in ("model.bin", "model.xml"):
        change(pack / name)
    for batch in (images, tensors):
        np.testing.assert_array_equal(changed.forward(batch), expected.forward(batch))
    engines = expected.forward, changed.forward
    maps = [engine.explain(images[0], 1) for engine in engines if isinstance(engine, OpenVINOEngine)]
    assert maps[0] is not None
    assert maps[1] is not None
    np.testing.assert_array_equal(maps[0].map, maps[1].map)


def test_an_engine_that_has_settled_still_computes_from_the_copy(made: Path, pack: Path) -> None:
    images, _ = packed.read(made).proof()
    model = load(str(pack), SETTINGS)
    assert isinstance(model.forward, OpenVINOEngine)
    with model.forward.settling():
        before = model.forward(images)
    truncated(pack / "model.bin")
    tensors = normalise(images, SPEC)
    assert np.abs(model.forward(tensors) - before).max() < 0.1
    np.testing.assert_array_equal(model.forward(images), before)


@pytest.mark.parametrize("name", [packed.IMAGES, packed.PROBABILITIES])
def test_a_proof_that_changed_after_it_was_hashed_is_refused(pack: Path, name: str) -> None:
    read = packed.read(pack)
    overwritten(pack / name)
    with pytest.raises(PackError, match=f"{name}: changed while it was being read"):
        read.proof()


def test_a_golden_image_that_changed_after_it_was_hashed_proves_nothing(pack: Path) -> None:
    model = load(str(pack), SETTINGS)
    assert check_golden(model, SETTINGS.tolerance).agrees
    shutil.copyfile(pack / "golden" / "2.png", pack / "golden" / "1.png")
    assert "was changed" in check_golden(model, SETTINGS.tolerance).disagreements[0]


# --- how it is run ----------------------------------------------------------------------------------------


def test_it_is_served_by_its_name_labels_and_golden_images(made: Path) -> None:
    model = load(str(made), SETTINGS)
    assert (model.name, model.version, model.labels, model.spec) == ("zoo", "0", LABELS, SPEC)
    assert [one.image for one in model.golden] == [made / "golden" / f"{number}.png" for number in (1, 2)]
    assert check_golden(model, SETTINGS.tolerance).agrees
    assert load(str(made), asked(name="mine")).name == "mine"


def test_auto_computes_with_the_fewest_bits_that_the_cpu_computes_natively_and_agrees(made: Path) -> None:
    images, expected = packed.read(made).proof()
    auto, fp32 = load(str(made), SETTINGS), load(str(made), asked(precision="fp32"))
    assert auto.forward.precision == next(name for name in ("bf16", "fp16", "fp32") if name in precisions())
    assert np.abs(softmax(auto.forward(images)) - expected).max() <= SETTINGS.tolerance
    assert np.abs(softmax(fp32.forward(images)) - expected).max() < 1e-5
    assert load(str(made), asked(tolerance=0.0)).forward.precision == "fp32"


@pytest.mark.slow
def test_its_plan_is_taken_where_it_was_measured_on_such_a_processor(made: Path, tmp_path: Path) -> None:
    measured = load(str(made), asked(precision="fp32", tune_budget=60.0), measure=True).plan
    tiny_pack(tmp_path / "pack", plan=measured)
    assert load(str(tmp_path / "pack"), SETTINGS).plan == measured
    assert load(str(tmp_path / "pack"), asked(max_batch=3)).plan == replace(measured, max_batch=3)

    tiny_pack(tmp_path / "elsewhere", plan=replace(measured, cpu="another"))
    taken = load(str(tmp_path / "elsewhere"), SETTINGS).plan
    assert not any(trial.rate for trial in taken.trials)
    assert "for another" in taken.reason


def test_it_is_measured_when_that_is_asked_for_and_not_at_each_start(made: Path) -> None:
    patient = asked(tune_budget=60.0)
    assert not any(trial.rate for trial in load(str(made), patient).plan.trials)
    tried = load(str(made), patient, measure=True).plan.trials
    assert {trial.engine for trial in tried} == {"openvino"}
    assert all(trial.rate for trial in tried if trial.agrees)


def test_no_other_engine_runs_it(made: Path) -> None:
    with pytest.raises(EngineError, match="with engine torch; available: openvino fp32"):
        load(str(made), asked(engine="torch"))


def test_int8_where_it_was_not_packed_is_refused_with_what_to_do(made: Path) -> None:
    with pytest.raises(EngineError, match="pack it again with --precision int8 --calibration FOLDER"):
        load(str(made), asked(precision="int8"))


def test_compiled_graphs_go_to_the_cache_folder_and_come_from_there(made: Path, tmp_path: Path) -> None:
    cached = asked(cache_dir=tmp_path / "cache")
    first = load(str(made), cached)
    blobs = {path: path.stat().st_mtime_ns for path in cached.cache_dir.rglob("*.blob")}
    assert blobs
    again = load(str(made), cached)
    assert {path: path.stat().st_mtime_ns for path in cached.cache_dir.rglob("*.blob")} == blobs
    images, _ = packed.read(made).proof()
    np.testing.assert_array_equal(first.forward(images), again.forward(images))
