"""Binary: two classes and one output, whose sigmoid is the probability of the second class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, JsonValue

from pthserve.files.golden import Golden
from pthserve.tasks.base import Comparison, GoldenResult, Outputs, Row, Size, Target, TensorForm
from pthserve.tasks.classification import (
    Classification,
    ClassificationAnswer,
    ClassificationTask,
    check_class,
    ranked_rows,
)
from pthserve.tasks.multilabel import THRESHOLD, MultiLabelTask, log_sigmoid, sigmoid

LABELS = ("negative", "positive")
"""The classes, unless the card states others: 0 where the output is negative, 1 where it is positive."""

_EXAMPLE: dict[str, JsonValue] = {
    "task": "binary",
    "class_index": 1,
    "label": "positive",
    "threshold": 0.5,
    "probabilities": [0.1, 0.9],
    "top": [
        {"class_index": 1, "label": "positive", "probability": 0.9},
        {"class_index": 0, "label": "negative", "probability": 0.1},
    ],
}


class BinaryAnswer(ClassificationAnswer):
    """The class of an image, one of two, as JSON."""

    model_config = ConfigDict(defer_build=True, json_schema_extra={"examples": [_EXAMPLE]})

    task: str = Field(description="binary")
    class_index: int = Field(description="1 where the positive class is as probable as the threshold, else 0")
    threshold: float = Field(description="the probability from which on the class is the positive one")


@dataclass(frozen=True, slots=True, eq=False)
class Binary(Classification):
    """The class of one image, one of two: 0 negative, 1 positive.

    logits: float32 (1,). probabilities: float32 (2,). labels: of the negative and of the positive class.
    threshold: the probability from which on the class is the positive one.
    """

    threshold: float = THRESHOLD

    @property
    def class_index(self) -> int:
        """1 where the positive class is as probable as the threshold, else 0."""
        return int(self.probabilities[1] >= np.float32(self.threshold))

    def to_dict(self, top: int) -> dict[str, Any]:
        """The fields of `BinaryAnswer`; see `Answer`. `probabilities` stays an array."""
        fields = Classification.to_dict(self, top)
        return {"task": BinaryTask.name, "threshold": self.threshold, **fields}


@dataclass(frozen=True, slots=True)
class BinaryTask(ClassificationTask):
    """One logit, float32 (n, 1), and its sigmoid; else as classification with two classes; see `Task`.

    threshold: the probability from which on the class is the positive one, 0 to 1.
    """

    threshold: float = THRESHOLD

    name = "binary"
    answer_model = BinaryAnswer

    def parameters(self) -> dict[str, Any]:
        """The threshold; see `Task`."""
        return {"threshold": self.threshold}

    def labels(self, stated: tuple[str, ...] | None, outputs: int) -> tuple[str, ...]:
        """Two: of the negative class, then of the positive; see `Task`."""
        if stated is not None and len(stated) != len(LABELS):
            raise ValueError(
                f"there are {len(stated)} labels, and the task binary has two: the negative class, "
                "then the positive"
            )
        return stated or LABELS

    def outputs(self, labels: tuple[str, ...]) -> int:
        """One; see `Task`."""
        return 1

    def describe(self, labels: tuple[str, ...]) -> str:
        """That it has two classes; see `Task`."""
        return "has 2 classes"

    def answer(self, output: NDArray[np.float32], labels: tuple[str, ...], size: Size = (1, 1)) -> Binary:
        """The class of one image; see `Task`."""
        return Binary(output, _both(output), labels, self.threshold)

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """The probability of the positive class of each image: float32 (n, 1)."""
        return sigmoid(outputs)

    def agree(self, scores: NDArray[np.float32], reference: NDArray[np.float32], margin: float) -> Comparison:
        """As of one label; see `MultiLabelTask.agree`."""
        return MultiLabelTask(self.threshold).agree(scores, reference, margin)

    def check_golden(
        self,
        outputs: Outputs,
        golden: Sequence[Golden],
        labels: tuple[str, ...],
        tolerance: float,
        sizes: Sequence[Size] = (),
    ) -> list[GoldenResult]:
        """As classification; see `Task`."""
        both = map(_both, outputs)
        return [
            check_class(row, one, labels, tolerance, int(row[1] >= np.float32(self.threshold)))
            for row, one in zip(both, golden, strict=True)
        ]

    def target(self, class_index: int) -> Target:
        """The one output, for the positive class or against it; see `Task`."""
        sign = 1 if class_index else -1
        return Target(0, sign, lambda outputs: log_sigmoid(sign * outputs[:, 0]))

    def tensor_forms(self, classes: int) -> tuple[TensorForm, ...]:
        """As classification, but that there is one logit; see `Task`."""
        return tuple(
            TensorForm("logits", "FP32", (-1, 1)) if form.name == "logits" else form
            for form in ClassificationTask.tensor_forms(self, classes)
        )

    @staticmethod
    def rows(answer: Mapping[str, Any]) -> list[Row]:
        """Both classes, the one that is answered first; see `Task`."""
        classes = sorted(answer["top"], key=lambda one: one["class_index"] != answer["class_index"])
        return ranked_rows(classes)


def _both(output: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probabilities of both classes, float32 (2,), of one row of outputs."""
    return np.concatenate((sigmoid(-output), sigmoid(output)))
