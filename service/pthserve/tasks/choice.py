"""Choice: which task a model has, by what its card states and what its outputs tell."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pthserve.certainty import Inferred, Origin
from pthserve.errors import CardError
from pthserve.files.stated_task import Hint, NamedOutput, StatedTask, TaskName
from pthserve.images.spec import Spec
from pthserve.tasks.base import Task
from pthserve.tasks.binary import BinaryTask
from pthserve.tasks.classification import CLASSIFICATION, ClassificationTask
from pthserve.tasks.detection import DetectionTask
from pthserve.tasks.embedding import EmbeddingTask
from pthserve.tasks.multilabel import THRESHOLD, MultiLabelTask
from pthserve.tasks.regression import RegressionTask
from pthserve.tasks.segmentation import SegmentationTask

TaskType = (
    type[ClassificationTask]
    | type[MultiLabelTask]
    | type[BinaryTask]
    | type[RegressionTask]
    | type[EmbeddingTask]
    | type[DetectionTask]
    | type[SegmentationTask]
)

TASKS: Mapping[str, TaskType] = {
    task.name: task
    for task in (
        ClassificationTask,
        MultiLabelTask,
        BinaryTask,
        RegressionTask,
        EmbeddingTask,
        DetectionTask,
        SegmentationTask,
    )
}
"""By name."""


def choose(
    stated: StatedTask, outputs: int, hint: Hint | None = None, doubt: str = "", own: Task | None = None
) -> tuple[Task, Inferred]:
    """The task of a model, and what that rests on.

    Args:
        stated: what its card, or an option, states.
        outputs: how many numbers the model gives for an image.
        hint: what its file tells.
        doubt: why it may have another task than classification, where nothing tells.
        own: the only task that its architecture has, where it has only one.

    Raises:
        CardError: it has to be stated, or what is stated does not fit the outputs.
    """
    name = stated.name or stated.implied
    if own is not None:
        return _own(own, stated)
    if hint is not None and hint.task == "embedding" and name != "embedding":
        raise CardError(
            f"{hint.reason}: it gives {outputs} features and no classes. Save the model with its head, or "
            "serve the features with `task: embedding` in model.yaml, or --task embedding"
        )
    if stated.name is None and stated.implied == "classification" and outputs == 1:
        name = "binary"  # a golden image states a class, and one output tells two apart
    if name is not None:
        return make(name, stated, outputs), Inferred("task", name, Origin.CARD)
    if hint is not None:
        task = make(hint.task, stated, outputs)
        return task, Inferred("task", f"{hint.task}: {hint.reason}", Origin.FILE, f"task: {hint.task}")
    if outputs == 1:
        raise CardError(
            "the model has one output, which may be a logit or a value: state `task: binary` or "
            "`task: regression` in model.yaml, or --task binary or --task regression"
        )
    task = make("classification", stated, outputs)
    value = "classification: one class per image, by softmax"
    if doubt:
        return task, Inferred("task", f"{value}, although {doubt}", Origin.ASSUMED, "task: multilabel")
    return task, Inferred("task", value, Origin.DEFAULT, "task: multilabel")


def _own(own: Task, stated: StatedTask) -> tuple[Task, Inferred]:
    """The task of an architecture that has only one, with the parameters that are stated."""
    if stated.name not in (None, own.name):
        raise CardError(
            f"the task is {stated.name}, and this model's is {own.name}; state `task: {own.name}`, or leave "
            "it out"
        )
    if isinstance(own, DetectionTask) and stated.threshold is not None:
        own = replace(own, threshold=stated.threshold)
    origin = Origin.FILE if stated.name is None else Origin.CARD
    return own, Inferred("task", own.name, origin)


def make(name: TaskName, stated: StatedTask, outputs: int) -> Task:
    """The task called `name`, with the parameters that `stated` has for it; raises CardError."""
    match name:
        case "multilabel":
            return MultiLabelTask(THRESHOLD if stated.threshold is None else stated.threshold)
        case "binary":
            if outputs != 1:
                raise CardError(
                    f"the task binary has one output, but the model has {outputs}; one class per image is "
                    "`task: classification`, several labels are `task: multilabel`"
                )
            return BinaryTask(THRESHOLD if stated.threshold is None else stated.threshold)
        case "regression":
            named = stated.outputs or _unnamed(outputs)
            if len(named) != outputs:
                raise CardError(f"`outputs` names {len(named)} values, but the model has {outputs} outputs")
            return RegressionTask(named)
        case "embedding":
            return EmbeddingTask(outputs, stated.normalize)
        case "detection":
            raise CardError("the task detection needs a model that gives boxes, and this one gives numbers")
        case "segmentation":
            raise CardError(
                "the task segmentation needs a model that gives classes of pixels, and this one gives numbers"
            )
    if outputs < 2:
        raise CardError(
            "the task classification needs at least two outputs, but the model has one; state `task: binary` "
            "or `task: regression`"
        )
    return CLASSIFICATION


def placed(task: Task, spec: Spec, card: Path) -> Task:
    """Return `task` with places in the coordinates of the image as sent, for images that `spec` makes.

    Args:
        card: The file that states `spec`, for messages.

    Raises:
        CardError: `spec` cuts off what the answer is about.
    """
    if isinstance(task, DetectionTask | SegmentationTask) and not spec.shows_all:
        height, width = spec.crop
        raise CardError(
            f"{card}: preprocessing: crops images to {height} x {width} pixels, so that the model does not "
            f"get the rest of an image; for the task {task.name}, state `resize: [{height}, {width}]` with "
            "the same `crop`, or `crop: null` where the model accepts any size"
        )
    if isinstance(task, SegmentationTask) and spec.pad is not None:
        raise CardError(
            f"{card}: preprocessing.pad: is for the task detection; a class map would show the padding, too"
        )
    if isinstance(task, DetectionTask):
        return replace(task, spec=spec if spec.pad is not None else None)
    return task


def task_fields(task: Task) -> dict[str, Any]:
    """The task's name and parameters, as plain values."""
    return {"name": task.name, **task.parameters()}


def _unnamed(outputs: int) -> tuple[NamedOutput, ...]:
    if outputs == 1:
        return (NamedOutput("value"),)
    return tuple(NamedOutput(f"value_{number}") for number in range(outputs))
