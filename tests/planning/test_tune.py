"""Tuning keeps what serves most images, of what answers as fp32 PyTorch does."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from pthserve.engines.base import Engine
from pthserve.engines.openvino_engine import precisions
from pthserve.engines.openvino_graph import convert
from pthserve.engines.quantized_graph import Quantization
from pthserve.errors import EngineError
from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec
from pthserve.planning import plan_files
from pthserve.planning.candidates import Candidate, EngineFactory, Quantized
from pthserve.planning.crops import Crops, Photo
from pthserve.planning.examiner import Examiner
from pthserve.planning.plan import Plan
from pthserve.planning.tune import Budget, Measurement, tune
from pthserve.settings import Settings
from pthserve.tasks.classification import softmax

from ..linear import png

SPEC = Spec(crop=(32, 32))
DIGEST = "d" * 64

Build = Callable[[str, Spec], nn.Module]
Pixels = Callable[[Spec, int], NDArray[np.uint8]]


def settings(**values: Any) -> Settings:
    return Settings(**{"threads": 2, "tune_budget": 60, "device": "cpu", **values})


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pthserve.planning.tune.SLICE", 0.0)


@pytest.fixture
def module(build: Build) -> nn.Module:
    return build("tiny", SPEC)


@pytest.fixture
def images(pixels: Pixels) -> NDArray[np.uint8]:
    return pixels(SPEC, 4)


@pytest.fixture(scope="module")
def graph(build: Build) -> object:
    return convert(build("tiny", SPEC), SPEC)


class Fickle(nn.Module):
    """What no graph can express: a branch on a value."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(images)
        return logits if logits.sum() > 0 else logits + 0


def tuned(
    module: nn.Module | None,
    spec: Spec,
    digest: str,
    images: NDArray[np.uint8],
    options: Settings,
    *,
    known: Plan | None = None,
    **graphs: object,
) -> tuple[Plan, Engine]:
    engines = EngineFactory(module, spec, options, **graphs)  # type: ignore[arg-type]
    return tune(Examiner(engines, crops(images, spec)), digest, known=known)


def crops(images: NDArray[np.uint8], spec: Spec) -> Crops:
    """Crops of the images, of which each is a photo."""
    photos = [Photo(f"image {number}", lambda image=image: png(image)) for number, image in enumerate(images)]  # type: ignore[misc]
    return Crops(photos, spec, "images")


def run(threads: int, rates: dict[int, float], device: str = "cpu") -> Measurement:
    unused: Any = None
    return Measurement(Candidate("openvino", "fp32", device, threads), unused, 0.0, cpus=2, rates=rates)


@pytest.mark.slow
def test_auto_takes_what_agrees_with_torch_but_no_int8_and_says_why(
    module: nn.Module, images: NDArray[np.uint8], graph: object
) -> None:
    plan, engine = tuned(module, SPEC, DIGEST, images, settings(), graph=graph)
    assert (plan.engine, plan.precision, plan.threads) == (engine.name, engine.precision, engine.threads)
    with torch.no_grad():
        expected = module(torch.from_numpy(normalise(images, SPEC))).softmax(1).numpy()
    assert np.abs(softmax(engine(images)) - expected).max() < 0.02
    assert "int8" not in {trial.precision for trial in plan.trials}
    tried = {(trial.engine, trial.precision, trial.threads) for trial in plan.trials if trial.agrees}
    assert {("openvino", "fp32", 2), ("torch", "fp32", 2)} <= tried
    assert all(trial.rate > 0 for trial in plan.trials if trial.agrees)
    assert plan.reason.startswith(f"{plan.engine} {plan.precision} on {plan.threads} thread")
    assert plan.digest == DIGEST
    assert plan_files.fits(plan, DIGEST, settings())


def test_without_a_budget_it_is_openvino_at_fp32_unmeasured(
    module: nn.Module, images: NDArray[np.uint8], graph: object
) -> None:
    plan, engine = tuned(module, SPEC, DIGEST, images, settings(tune_budget=0), graph=graph)
    assert (engine.name, engine.precision, plan.max_batch) == ("openvino", "fp32", 8)
    assert [(trial.rate, trial.agrees) for trial in plan.trials] == [(0.0, True)]
    assert "not measured" in plan.reason
    assert plan.digest == ""


@pytest.mark.slow
def test_what_openvino_cannot_express_runs_on_torch(module: nn.Module, images: NDArray[np.uint8]) -> None:
    plan, engine = tuned(Fickle(module), SPEC, DIGEST, images, settings(tune_budget=0))
    assert plan.engine == engine.name == "torch"
    refused = next(trial for trial in plan.trials if not trial.agrees)
    assert refused.engine == "openvino"
    assert "Fickle" in refused.note


@pytest.mark.slow
def test_a_candidate_that_disagrees_does_not_count(
    build: Build, module: nn.Module, images: NDArray[np.uint8]
) -> None:
    other = convert(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7)), SPEC)
    plan, engine = tuned(module, SPEC, DIGEST, images, settings(), graph=other)
    assert plan.engine == engine.name == "torch"
    refused = next(trial for trial in plan.trials if trial.engine == "openvino")
    assert not refused.agrees
    assert refused.difference > 0.02
    assert "on 208 crops a difference is" in refused.note


@pytest.mark.slow
def test_nothing_that_agrees_is_an_error_with_all_reasons(
    module: nn.Module, images: NDArray[np.uint8]
) -> None:
    other = convert(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7)), SPEC)
    with pytest.raises(EngineError, match=r"openvino fp32: on 208 crops a difference"):
        tuned(module, SPEC, DIGEST, images, settings(engine="openvino", precision="fp32"), graph=other)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_the_engine_that_is_asked_for_is_the_only_one_tried(
    module: nn.Module, images: NDArray[np.uint8], graph: object, engine: Any
) -> None:
    plan, made = tuned(module, SPEC, DIGEST, images, settings(engine=engine), graph=graph)
    assert made.name == engine
    assert {trial.engine for trial in plan.trials} == {engine}


def test_a_precision_that_the_cpu_lacks_is_an_error_that_names_what_it_needs(
    module: nn.Module, images: NDArray[np.uint8], graph: object
) -> None:
    if "bf16" in precisions():
        pytest.skip("this CPU computes bf16")
    with pytest.raises(EngineError, match="avx512_bf16"):
        tuned(module, SPEC, DIGEST, images, settings(precision="bf16"), graph=graph)


@pytest.mark.parametrize("values", [{"engine": "torch", "precision": "int8"}, {"precision": "fp8"}])
def test_what_nothing_computes_is_an_error(
    module: nn.Module, images: NDArray[np.uint8], values: dict[str, Any]
) -> None:
    asked = settings().model_copy(update=values)
    with pytest.raises(EngineError, match=rf"precision {values['precision']} is not available"):
        tuned(module, SPEC, DIGEST, images, asked)


@pytest.mark.slow
def test_the_largest_batch_that_is_asked_for_bounds_what_is_tried(
    module: nn.Module, images: NDArray[np.uint8], graph: object
) -> None:
    plan, _ = tuned(module, SPEC, DIGEST, images, settings(max_batch=3), graph=graph)
    assert plan.max_batch == 3
    assert {trial.batch for trial in plan.trials} <= {1, 2}


def test_int8_needs_images_to_calibrate_on(
    module: nn.Module, images: NDArray[np.uint8], graph: object, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="--calibration"):
        tuned(module, SPEC, DIGEST, images, settings(precision="int8"), graph=graph)
    with pytest.raises(EngineError, match="no image"):
        tuned(module, SPEC, DIGEST, images, settings(precision="int8", calibration=tmp_path), graph=graph)


@pytest.mark.slow
def test_int8_passes_the_same_guard(
    module: nn.Module, images: NDArray[np.uint8], graph: object, pixels: Pixels, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "LICENSE").write_text("not an image")
    for number, image in enumerate(pixels(SPEC, 20)):
        Image.fromarray(image).resize((300, 280)).save(tmp_path / "more" / f"{number}.png")
    asked = settings(precision="int8", calibration=tmp_path, tolerance=1)
    plan, engine = tuned(module, SPEC, DIGEST, images[:1], asked, graph=graph)
    assert engine.precision == "int8"
    assert plan.agreement is not None
    assert 0 < plan.agreement.largest < 1
    with pytest.raises(EngineError, match=r"int8 does not agree .*on 208 crops"):
        tuned(module, SPEC, DIGEST, images[:1], asked.model_copy(update={"tolerance": 0}), graph=graph)


@pytest.mark.slow
def test_a_plan_is_taken_from_the_cache_without_measuring(
    module: nn.Module, images: NDArray[np.uint8], graph: object, tmp_path: Path
) -> None:
    asked = settings(cache_dir=tmp_path)
    first, _ = tuned(module, SPEC, DIGEST, images, asked, graph=graph)
    again, engine = tuned(module, SPEC, DIGEST, images, asked, graph=graph)
    assert again == first
    assert (engine.name, engine.precision, engine.threads) == (first.engine, first.precision, first.threads)
    smaller = asked.model_copy(update={"max_batch": 2})
    assert tuned(module, SPEC, DIGEST, images, smaller, graph=graph)[0] == replace(first, max_batch=2)
    other, _ = tuned(module, SPEC, "e" * 64, images, asked, graph=graph)
    assert other.digest == "e" * 64


@pytest.mark.slow
def test_a_broken_plan_in_the_cache_is_made_anew(
    module: nn.Module, images: NDArray[np.uint8], graph: object, tmp_path: Path
) -> None:
    asked = settings(cache_dir=tmp_path)
    file = plan_files.cache_file(DIGEST, asked)
    assert file
    file.write_text("{")
    plan, _ = tuned(module, SPEC, DIGEST, images, asked, graph=graph)
    assert plan_files.read(file) == plan


@pytest.mark.slow
def test_a_plan_that_is_named_is_taken_where_it_fits(
    module: nn.Module, images: NDArray[np.uint8], graph: object, tmp_path: Path
) -> None:
    plan, _ = tuned(module, SPEC, DIGEST, images, settings(engine="torch"), graph=graph)
    plan_files.write(plan, tmp_path / "plan.json")
    taken, engine = tuned(module, SPEC, DIGEST, images, settings(plan=tmp_path / "plan.json"), graph=graph)
    assert taken == plan
    assert engine.name == "torch"


@pytest.mark.slow
def test_a_plan_that_is_named_but_does_not_fit_is_warned_of_and_measured_anew(
    module: nn.Module,
    images: NDArray[np.uint8],
    graph: object,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan_files.write(Plan(digest="e" * 64, reason="old"), tmp_path / "plan.json")
    asked = settings(plan=tmp_path / "plan.json")
    with caplog.at_level(logging.WARNING, "pthserve"):
        plan, _ = tuned(module, SPEC, DIGEST, images, asked, graph=graph)
    assert "plan.json does not fit" in caplog.text
    assert plan.digest == DIGEST


def test_a_plan_that_is_named_but_is_none_is_an_error(
    module: nn.Module, images: NDArray[np.uint8], graph: object, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"plan\.json"):
        tuned(module, SPEC, DIGEST, images, settings(plan=tmp_path / "plan.json"), graph=graph)


@pytest.mark.slow
def test_a_pack_needs_no_module_and_brings_its_plan(
    images: NDArray[np.uint8], graph: object, module: nn.Module
) -> None:
    known, _ = tuned(module, SPEC, DIGEST, images, settings(engine="openvino"), graph=graph)
    plan, engine = tuned(None, SPEC, DIGEST, images, settings(), graph=graph, known=known)
    assert plan == known
    elsewhere = replace(known, cpu="another")
    plan, engine = tuned(None, SPEC, DIGEST, images, settings(), graph=graph, known=elsewhere)
    assert engine.name == "openvino"
    assert plan.cpu != "another"
    with pytest.raises(EngineError, match="precision auto is not available on cpu with engine torch"):
        tuned(None, SPEC, DIGEST, images, settings(engine="torch"), graph=graph)


def test_int8_of_a_pack_is_among_what_auto_tries(images: NDArray[np.uint8], graph: object) -> None:
    asked = settings(tolerance=1)
    quantized = Quantized(graph, Quantization(7, 1, {}, 1.0, "fp32", 0, ""))
    plan, _ = tuned(None, SPEC, DIGEST, images[:1], asked, graph=graph, quantized=quantized)
    assert "int8" in {trial.precision for trial in plan.trials}


def test_a_larger_batch_must_be_noticeably_quicker() -> None:
    assert run(2, {1: 100, 2: 102, 4: 102.5}).batch == 1
    assert run(2, {1: 100, 2: 102, 4: 105, 8: 106}).batch == 4
    assert run(2, {1: 100, 2: 150, 4: 120}).batch == 2


def test_a_batch_that_only_the_time_kept_from_being_measured_is_allowed() -> None:
    measurement = run(1, {1: 700.0}, device="cuda")
    measurement.measure(np.zeros((1, 3, 8, 8), np.uint8), (1, 8), Budget(0.0))
    assert measurement.interrupted
    assert measurement.max_batch(32) == 32
    assert measurement.max_batch(1) == 1


def test_a_batch_that_brings_nothing_is_not_allowed_though_larger_ones_were_not_measured() -> None:
    measurement = run(1, {1: 100.0, 2: 101.0})
    measurement.measure(np.zeros((1, 3, 8, 8), np.uint8), (1, 2, 4), Budget(0.0))
    assert measurement.max_batch(16) == 1


def test_what_decoding_leaves_of_the_cpus_is_what_is_served() -> None:
    assert run(2, {1: 100.0}).served == pytest.approx(1 / (1 / 100 + 0.003 / 2))
    assert run(1, {1: 50.0}).served == 50.0
    assert run(1, {1: 1000.0}, device="cuda").served == 1000.0


def test_more_images_at_the_cost_of_a_lone_client_do_not_win() -> None:
    both, one = run(2, {1: 300.0, 8: 300.0}), run(1, {1: 220.0, 8: 220.0})
    assert one.served > 1.03 * both.served
    assert not one.beats(both)
    assert run(2, {1: 330.0, 8: 330.0}).beats(both)
    assert not run(2, {1: 305.0, 8: 305.0}).beats(both)
