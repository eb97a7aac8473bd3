"""How each task compares its answer with the JSON that another release gave for the same image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from pthserve.files.stated_task import NamedOutput
from pthserve.tasks.base import BACKGROUND, Compared, Task
from pthserve.tasks.binary import BinaryTask
from pthserve.tasks.classification import CLASSIFICATION
from pthserve.tasks.detection import DetectionTask
from pthserve.tasks.embedding import EmbeddingTask
from pthserve.tasks.multilabel import MultiLabelTask
from pthserve.tasks.objects import Table
from pthserve.tasks.regression import RegressionTask
from pthserve.tasks.segmentation import SegmentationTask

from .test_detection import CAT, DOG, SIZE, row
from .test_segmentation import LEFT
from .test_segmentation import row as scores

DETECTION = DetectionTask(Table(most=4))
REGRESSION = RegressionTask((NamedOutput("age", "years"), NamedOutput("height", range=(0.0, 10.0))))
FOUND = (BACKGROUND, "cat", "dog")


def answered(task: Task, output: Any, labels: tuple[str, ...], size: tuple[int, int] = (1, 1)) -> Any:
    return task.answer(np.array(output, np.float32), labels, size)


def sent(task: Task, answer: Any) -> dict[str, Any]:
    """An answer as another release would send it for the query that the task asks with."""
    if task.comparison_query:
        name, _, value = task.comparison_query.partition("=")
        answer = task.selection({name: value})(answer)  # type: ignore[attr-defined]
    fields: dict[str, Any] = orjson.loads(orjson.dumps(answer.to_dict(1), option=orjson.OPT_SERIALIZE_NUMPY))
    return fields


def compared(task: Task, ours: Any, theirs: Any) -> Compared:
    return task.compare(ours, sent(task, theirs))


Case = tuple[Task, Any, tuple[str, ...], tuple[int, int]]
CASES: dict[str, Case] = {
    "classification": (CLASSIFICATION, [1, 3, 2], ("a", "b", "c"), (1, 1)),
    "binary": (BinaryTask(), [0.5], ("no", "yes"), (1, 1)),
    "multilabel": (MultiLabelTask(), [1, -3, 2], ("a", "b", "c"), (1, 1)),
    "regression": (REGRESSION, [40, 5], ("age", "height"), (1, 1)),
    "embedding": (EmbeddingTask(3), [0.6, 0, 0.8], (), (1, 1)),
    "detection": (DETECTION, row(CAT, DOG), FOUND, SIZE),
    "segmentation": (SegmentationTask(3), scores(LEFT), FOUND, (8, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_an_answer_agrees_with_itself(name: str) -> None:
    task, output, labels, size = CASES[name]
    answer = answered(task, output, labels, size)
    agrees, difference = compared(task, answer, answer)
    assert agrees
    assert difference == pytest.approx(0, abs=1e-6)


LABELLED = [name for name in CASES if name not in ("regression", "embedding")]


@pytest.mark.parametrize("name", LABELLED)
def test_a_model_with_permuted_labels_does_not_agree_although_it_computes_the_same(name: str) -> None:
    task, output, labels, size = CASES[name]
    ours = answered(task, output, labels, size)
    permuted = answered(task, output, (*labels[1:], labels[0]), size)
    assert not compared(task, ours, permuted).agrees


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fields", [{}, {"class_index": None}, []], ids=str)
def test_what_is_not_an_answer_of_the_task_is_an_error(name: str, fields: Any) -> None:
    task, output, labels, size = CASES[name]
    with pytest.raises((KeyError, TypeError, ValueError)):
        task.compare(answered(task, output, labels, size), fields)


def test_the_difference_of_classes_is_the_largest_of_a_probability() -> None:
    ours, close, other = (
        answered(CLASSIFICATION, output, ("a", "b", "c")) for output in ([1, 3, 2], [1, 3.1, 2], [3, 1, 2])
    )
    near = compared(CLASSIFICATION, ours, close)
    assert near.agrees
    assert near.difference == pytest.approx(np.abs(ours.probabilities - close.probabilities).max(), abs=1e-6)
    assert not compared(CLASSIFICATION, ours, other).agrees


def test_a_model_with_more_classes_may_agree_but_its_probabilities_are_not_compared() -> None:
    ours = answered(CLASSIFICATION, [1, 3, 2], ("a", "b", "c"))
    more = answered(CLASSIFICATION, [1, 3, 2, 0], ("a", "b", "c", "d"))
    assert compared(CLASSIFICATION, ours, more) == (True, 1.0)


def test_values_agree_by_name_and_unit() -> None:
    ours = answered(REGRESSION, [40, 5], ("age", "height"))
    near, far = (answered(REGRESSION, output, ("age", "height")) for output in ([42, 5.5], [40, 7]))
    assert compared(REGRESSION, ours, near).agrees
    assert compared(REGRESSION, ours, near).difference == pytest.approx(0.05)
    agreement = compared(REGRESSION, ours, far)
    assert agreement.agrees is False
    assert agreement.difference == pytest.approx(0.2)
    fields = sent(REGRESSION, ours)
    assert not REGRESSION.compare(ours, fields | {"units": {"age": "months"}}).agrees
    assert not REGRESSION.compare(ours, fields | {"values": {"age": 40}}).agrees


def test_vectors_agree_where_they_are_similar() -> None:
    task = EmbeddingTask(3)
    ours, near, far = (answered(task, output, ()) for output in ([1, 0, 0], [0.95, 0.3, 0], [0, 1, 0]))
    assert compared(task, ours, near).agrees
    agreement = compared(task, ours, far)
    assert agreement.agrees is False
    assert agreement.difference == pytest.approx(1)
    assert task.compare(ours, {"embedding": [1.0, 0.0]}) == (False, 1.0)


SHIFTED = (0.15, 0.2, 0.55, 0.8, 0.7, 1)


@pytest.mark.parametrize(
    ("objects", "agrees", "difference"),
    [
        ((SHIFTED, DOG), True, 0.2),
        ((CAT,), False, 0.6),
        ((), False, 0.9),
        ((CAT, (*DOG[:5], 1)), False, 0.6),
    ],
    ids=["shifted", "one is missing", "none", "another class"],
)
def test_objects_agree_where_each_has_a_match(
    objects: tuple[tuple[float, ...], ...], agrees: bool, difference: float
) -> None:
    ours, theirs = (answered(DETECTION, row(*each), FOUND, SIZE) for each in ((CAT, DOG), objects))
    agreement = compared(DETECTION, ours, theirs)
    assert agreement.agrees is agrees
    assert agreement.difference == pytest.approx(difference)


def test_class_maps_agree_where_nearly_all_pixels_do() -> None:
    task = SegmentationTask(3)
    map_of: Callable[..., Any] = lambda output, size=(8, 4): answered(task, output, FOUND, size)  # noqa: E731
    ours = map_of(scores(LEFT))
    assert compared(task, ours, map_of(scores(LEFT, 2))).agrees
    assert compared(task, ours, map_of(scores([[0]]))) == (False, 0.5)
    assert compared(task, ours, map_of(scores(LEFT), (8, 5))) == (False, 1.0)
