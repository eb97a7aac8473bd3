"""The command line knows every task: predict, golden, inspect, pack, tune."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pthserve.files import card

from ..cli.called import called
from ..http_service import serving
from .asking import SETTINGS
from .nets import CODE, folder, reference, weights

pytestmark = pytest.mark.slow

COMMON = ("--allow-code", CODE, "--engine", "openvino", "--precision", "fp32")
CARDS: dict[str, tuple[int, dict[str, Any]]] = {
    "multilabel": (4, {"labels": ["beach", "dog", "people", "snow"], "threshold": 0.3}),
    "binary": (1, {"labels": ["cat", "dog"]}),
    "regression": (2, {"outputs": [{"name": "age", "unit": "years"}, {"name": "height"}]}),
    "embedding": (6, {"normalize": True}),
}
SHOWN: dict[str, Callable[[torch.Tensor], list[str]]] = {
    "multilabel": lambda row: [f"{100 * p:.1f} %{' *' if p >= 0.3 else ''}" for p in row.sigmoid().tolist()],
    "binary": lambda row: [f"{100 * p:.1f} %" for p in (row.sigmoid().item(), 1 - row.sigmoid().item())],
    "regression": lambda row: [
        f"age +{str(row[0].item())[:5]}\\d* years",
        f"height +{str(row[1].item())[:4]}",
    ],
    "embedding": lambda row: ["6 numbers, length 1 ", f"{torch.nn.functional.normalize(row, dim=0)[0]:.4g}"],
}


@pytest.fixture(scope="module", params=CARDS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source(task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the task, with a card that does not name it."""
    outputs, fields = CARDS[task]
    return folder(tmp_path_factory.mktemp(task) / "net", weights(outputs), **fields)


def test_predict_shows_the_answer_and_gives_the_service_s_json(task: str, source: Path) -> None:
    shown = called("predict", source, source / "0.png", "--task", task, *COMMON)
    assert shown.returncode == 0, shown.stderr
    row = reference(weights(CARDS[task][0]))[0]
    for text in SHOWN[task](row):
        pattern = text if task == "regression" else re.escape(text)
        assert re.search(pattern, shown.stdout), (text, shown.stdout)

    here = called("predict", source, source / "0.png", "--json", "--task", task, *COMMON)
    from pthserve.loading.load import load

    model = load(str(source), SETTINGS.model_copy(update={"task": task}))
    with serving(model) as service:
        there = called("predict", service.url, source / "0.png", "--json")
        table = called("predict", service.url, source / "0.png")
    assert table.stdout == shown.stdout
    (ours,), (theirs,) = json.loads(here.stdout), json.loads(there.stdout)
    assert ours.items() >= {"task": task, "image": str(source / "0.png")}.items()
    assert {*theirs} - {*ours} == {"model", "timing"}
    for name, value in ours.items():
        if name in ("probabilities", "embedding"):
            np.testing.assert_allclose(value, theirs[name], atol=1e-6)
        elif name in ("labels", "top"):
            assert [one["label"] for one in value] == [one["label"] for one in theirs[name]]
        elif name != "image":
            assert value == pytest.approx(theirs[name]) if name == "values" else value == theirs[name]


def test_golden_records_answers_that_tell_the_task_and_holds_the_model_to_them(
    task: str, source: Path, tmp_path: Path
) -> None:
    outputs, fields = CARDS[task]
    path = folder(tmp_path / "net", weights(outputs), **fields)
    images = [path / f"{number}.png" for number in range(3)]
    recorded = called("golden", path, *images, "--task", task, *COMMON)
    assert recorded.returncode == 0, recorded.stderr
    told = card.read(path).task.implied
    assert told == ("classification" if task == "binary" else task)

    held = called("golden", path, *COMMON)
    assert held.returncode == 0, held.stderr
    assert "All 3 golden images pass; the largest difference is " in held.stdout

    torch.save(weights(outputs, seed=1).state_dict(), path / "net.pth")
    other = called("golden", path, *COMMON)
    assert other.returncode == 4
    assert "0.png: " in other.stderr


def test_a_pack_has_the_task_and_keeps_it(task: str, source: Path, tmp_path: Path) -> None:
    packed = called("pack", source, "-o", tmp_path / "pack", "--task", task, "--allow-code", CODE)
    assert packed.returncode == 0, packed.stderr
    assert f", {task}, " in packed.stdout
    shown = called("inspect", tmp_path / "pack", "--json")
    found = json.loads(shown.stdout)["task"]
    assert found["name"] == task
    assert json.loads((tmp_path / "pack" / "manifest.json").read_text())["format"] == 2

    other = called("predict", tmp_path / "pack", source / "0.png", "--task", "classification")
    assert other.returncode == 3
    assert f"was packed for the task {task}, not classification" in other.stderr


def test_tune_holds_candidates_to_the_task_s_own_measure(task: str, source: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    options = ("--task", task, "--tune-budget", "0.2", "--threads", "1", "--allow-code", CODE)
    done = called("tune", source, "-o", plan, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(plan.read_text())["task"] == task
    assert any(trial["agrees"] for trial in json.loads(plan.read_text())["trials"])


def test_a_model_with_one_output_is_refused_with_both_ways_on(tmp_path: Path) -> None:
    source = folder(tmp_path / "net", weights(1))
    refused = called("predict", source, source / "0.png", *COMMON)
    assert refused.returncode == 3
    assert "--task binary or --task regression" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_card_s_labels_and_outputs_must_fit(tmp_path: Path) -> None:
    for outputs, fields, words in (
        (1, {"task": "binary", "labels": ["a", "b", "c"]}, "the task binary has two"),
        (4, {"task": "multilabel", "labels": ["a"]}, "there are 1 labels, but the model has 4 outputs"),
        (2, {"task": "regression", "outputs": [{"name": "age"}]}, "`outputs` names 1 values"),
        (6, {"task": "embedding", "labels": ["a"]}, "an embedding has no labels"),
        (2, {"task": "regression", "labels": ["a", "b"]}, "name its values in `outputs`"),
    ):
        source = folder(tmp_path / words[:9].strip("`"), weights(outputs), **fields)
        refused = called("predict", source, source / "0.png", *COMMON)
        assert refused.returncode == 3, words
        assert words in refused.stderr
