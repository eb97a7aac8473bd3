"""Which task a model has: what is stated, then what the file tells; one output is never guessed."""

import re

import pytest
from pydantic import BaseModel

from pthserve.certainty import Origin
from pthserve.errors import CardError
from pthserve.files.stated_task import Hint, NamedOutput, StatedTask
from pthserve.tasks.base import Task
from pthserve.tasks.binary import BinaryTask
from pthserve.tasks.choice import TASKS, TaskType, choose, make, task_fields
from pthserve.tasks.classification import CLASSIFICATION
from pthserve.tasks.embedding import EmbeddingTask
from pthserve.tasks.multilabel import MultiLabelTask
from pthserve.tasks.regression import RegressionTask

NOTHING = StatedTask()
SIGMOID = Hint("multilabel", "its last operation is a Sigmoid")
NO_HEAD = Hint("embedding", "this is the body of resnet18 without a head")


def test_nothing_told_of_several_outputs_is_classification_and_said_to_be_a_default() -> None:
    task, inferred = choose(NOTHING, 5)
    assert task == CLASSIFICATION
    assert (inferred.subject, inferred.origin, inferred.setting) == (
        "task",
        Origin.DEFAULT,
        "task: multilabel",
    )
    assert inferred.value == "classification: one class per image, by softmax"
    assert inferred.uncertain


def test_a_doubt_makes_classification_an_assumption_with_its_reason() -> None:
    task, inferred = choose(NOTHING, 5, doubt="its last layer is wrapped")
    assert task == CLASSIFICATION
    assert inferred.origin is Origin.ASSUMED
    assert "although its last layer is wrapped" in inferred.value


def test_one_output_is_refused_with_both_ways_on() -> None:
    with pytest.raises(CardError) as refused:
        choose(NOTHING, 1)
    for way in ("`task: binary`", "`task: regression`", "--task binary", "--task regression"):
        assert way in str(refused.value)


@pytest.mark.parametrize(
    ("stated", "outputs", "task"),
    [
        (StatedTask("classification"), 3, CLASSIFICATION),
        (StatedTask("multilabel"), 3, MultiLabelTask(0.5)),
        (StatedTask("multilabel", threshold=0.2), 3, MultiLabelTask(0.2)),
        (StatedTask("multilabel", threshold=0.0), 1, MultiLabelTask(0.0)),
        (StatedTask("binary"), 1, BinaryTask()),
        (StatedTask("regression"), 1, RegressionTask((NamedOutput("value"),))),
        (
            StatedTask("regression", outputs=(NamedOutput("age", "years"),)),
            1,
            RegressionTask((NamedOutput("age", "years"),)),
        ),
        (StatedTask("embedding", normalize=True), 8, EmbeddingTask(8, normalize=True)),
        (StatedTask(implied="multilabel", threshold=0.2), 3, MultiLabelTask(0.2)),
        (StatedTask(implied="classification"), 1, BinaryTask()),
        (StatedTask("classification", implied="multilabel", threshold=0.2), 3, CLASSIFICATION),
    ],
)
def test_what_is_stated_is_the_task(stated: StatedTask, outputs: int, task: Task) -> None:
    found, inferred = choose(stated, outputs, SIGMOID)
    assert type(found) is type(task)
    assert task_fields(found) == task_fields(task)
    assert inferred.origin is Origin.CARD


def test_what_the_file_tells_is_the_task_where_nothing_is_stated() -> None:
    task, inferred = choose(NOTHING, 5, SIGMOID)
    assert task == MultiLabelTask(0.5)
    assert (inferred.origin, inferred.value) == (Origin.FILE, "multilabel: its last operation is a Sigmoid")


@pytest.mark.parametrize(
    "stated", [NOTHING, StatedTask("classification"), StatedTask(implied="classification")]
)
def test_a_body_without_a_head_is_an_embedding_only_where_that_is_stated(stated: StatedTask) -> None:
    words = "resnet18 without a head: it gives 512 features .* `task: embedding` .*--task embedding"
    with pytest.raises(CardError, match=words):
        choose(stated, 512, NO_HEAD)
    assert choose(StatedTask("embedding"), 512, NO_HEAD)[0] == EmbeddingTask(512)


@pytest.mark.parametrize(
    ("stated", "outputs", "words"),
    [
        (StatedTask("classification"), 1, "state `task: binary` or `task: regression`"),
        (StatedTask("binary"), 2, "the task binary has one output, but the model has 2"),
        (
            StatedTask("regression", outputs=(NamedOutput("age"),)),
            2,
            "`outputs` names 1 values, but the model has 2",
        ),
    ],
)
def test_what_is_stated_must_fit_the_outputs(stated: StatedTask, outputs: int, words: str) -> None:
    with pytest.raises(CardError, match=re.escape(words)):
        choose(stated, outputs)


def test_every_task_comes_back_from_its_fields() -> None:
    tasks: tuple[Task, ...] = (
        CLASSIFICATION,
        MultiLabelTask(0.25),
        BinaryTask(),
        RegressionTask((NamedOutput("age", "years", (0.0, 120.0)), NamedOutput("height"))),
        EmbeddingTask(8, normalize=True),
    )
    # Detection and segmentation are the only tasks of their architectures, and made by none but those.
    assert {task.name for task in tasks} == TASKS.keys() - {"detection", "segmentation"}
    for task in tasks:
        fields = task_fields(task)
        outputs = [
            NamedOutput(one["name"], one.get("unit", ""), tuple(one["range"]) if "range" in one else None)
            for one in fields.get("outputs", ())
        ]
        stated = StatedTask(
            threshold=fields.get("threshold"),
            outputs=tuple(outputs),
            normalize=fields.get("normalize", False),
        )
        labels = ("a", "b") if task.name != "embedding" else ()
        again = make(fields["name"], stated, task.outputs(labels))
        assert task_fields(again) == fields


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_describes_its_answer_with_a_true_example(task: TaskType) -> None:
    model: type[BaseModel] = task.answer_model
    (example,) = model.model_json_schema()["examples"]
    assert model.model_validate(example).model_dump(exclude_unset=True) == example
    assert task.rows(example)
