"""columns: every task's answers are typed columns, derived from the fields of its JSON."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from pthserve.loading.model import Model
from pthserve.scoring.columns import LEFT_OUT, OWN, Columns
from pthserve.scoring.pipeline import Item, Scored
from pthserve.tasks.choice import TASKS

from ..linear import SPEC, Linear, linear

OUTPUTS = {"height": "m", "weight": "kg"}


class One:
    """Images with one key."""

    def __len__(self) -> int:
        return 1

    def key(self, index: int) -> str:
        return "cat.jpg"

    def read(self, index: int, most: int) -> bytes:
        raise AssertionError

    def close(self) -> None:
        pass


def columns(task: str) -> Columns:
    """Those of a model with this task, of which nothing but the fields of answers matters."""
    values: dict[str, Any] = {"digest": "0" * 64, "labels": ("a", "b"), "outputs": 2}
    answer = SimpleNamespace(to_dict=lambda top: {"values": dict.fromkeys(OUTPUTS, 0.0)})
    kind = SimpleNamespace(
        name=task, answer_model=TASKS[task].answer_model, answer=lambda output, labels: answer
    )
    return Columns(cast("Model", SimpleNamespace(task=kind, **values)), lambda found: found)


def example(task: str) -> dict[str, Any]:
    """The example of the task's schema."""
    (found,) = TASKS[task].answer_model.model_json_schema()["examples"]
    return dict(found)


def result(row: Any, error: str | None = None) -> Scored:
    return Scored(Item(One(), 0, None), row, error, (4, 3) if row else None)


@pytest.mark.parametrize("task", TASKS)
def test_the_example_of_each_task_is_a_row_that_keeps_every_value(task: str) -> None:
    answer = example(task)
    if task == "regression":
        answer["values"] = dict.fromkeys(OUTPUTS, 1.5)
    found = columns(task)
    row = found.row(SimpleNamespace(to_dict=lambda top: answer))
    (read,) = pa.Table.from_batches([found.batch([result(row)])]).to_pylist()
    assert (read["key"], read["width"], read["height"], read["error"]) == ("cat.jpg", 4, 3, None)
    for name, value in answer.items():
        if name not in LEFT_OUT:
            _same(read[name], value)


def _same(found: Any, value: Any) -> None:
    """What was read has all of `value`; fields that are not in it are null."""
    if isinstance(value, dict):
        for name in found:
            _same(found[name], value.get(name))
    elif isinstance(value, list):
        for one, other in zip(found, value, strict=True):
            _same(one, other)
    elif isinstance(value, float):
        assert found == pytest.approx(value)
    else:
        assert found == value


@pytest.mark.parametrize("task", TASKS)
def test_a_row_with_an_error_has_no_answer(task: str) -> None:
    found = columns(task)
    (read,) = pa.Table.from_batches([found.batch([result(None, "broken")])]).to_pylist()
    assert {name for name, value in read.items() if value is not None} == {"key", "model_digest", "error"}


def test_classes_have_the_columns_that_a_user_asks_for() -> None:
    assert [(one.name, str(one.type)) for one in columns("classification").schema] == [
        ("key", "string"),
        ("class_index", "int64"),
        ("label", "string"),
        ("probability", "float"),
        ("probabilities", "list<item: float>"),
        ("width", "int32"),
        ("height", "int32"),
        ("model_digest", "string"),
        ("error", "string"),
    ]


def test_objects_are_a_list_of_structs() -> None:
    kind = columns("detection").schema.field("detections").type
    assert {"label", "class_index", "score", "box", "mask", "keypoints"} <= {
        field.name for field in kind.value_type
    }


def test_values_have_the_names_of_the_outputs() -> None:
    kind = columns("regression").schema.field("values").type
    assert [(field.name, str(field.type)) for field in kind] == [("height", "float"), ("weight", "float")]


def test_the_probability_is_that_of_the_class_of_the_answer() -> None:
    model = linear(Linear(SPEC, 5))
    found = Columns(model, lambda answer: answer)
    answer = model.answer(np.array([0, 3, 1, 2, 0], np.float32))
    row = found.row(answer)
    assert row["class_index"] == 1
    assert row["probability"] == pytest.approx(max(answer.probabilities))
    assert row["probabilities"] is answer.probabilities


def test_no_task_has_a_field_of_the_name_of_another_column() -> None:
    for task in TASKS.values():
        assert not set(task.answer_model.model_fields) & set(OWN)
