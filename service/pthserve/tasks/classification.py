"""Classification: one class of many, with a probability for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pthserve.files.golden import Golden
from pthserve.metrics import count_prediction
from pthserve.tasks.base import (
    Compared,
    Comparison,
    GoldenResult,
    LabelPerOutput,
    Outputs,
    Row,
    Size,
    Target,
    TensorForm,
    TensorValues,
    finite_or_infinite,
    largest_difference,
)

Probabilities = NDArray[np.float32]
"""float32 (n, classes); each row sums to 1."""

_FEW = 16
"""Up to this many best classes, repeated `argmax` is faster than sorting all."""


_EXAMPLE: dict[str, JsonValue] = {
    "class_index": 0,
    "label": "red",
    "probabilities": [0.8, 0.1, 0.1],
    "top": [
        {"class_index": 0, "label": "red", "probability": 0.8},
        {"class_index": 1, "label": "green", "probability": 0.1},
        {"class_index": 2, "label": "blue", "probability": 0.1},
    ],
}


class RankedClass(BaseModel):
    """One of the most probable classes."""

    model_config = ConfigDict(defer_build=True)  # no start has a use for it

    class_index: int
    label: str
    probability: float


class ClassificationAnswer(BaseModel):
    """The classes of an image, as JSON."""

    model_config = ConfigDict(defer_build=True, json_schema_extra={"examples": [_EXAMPLE]})

    class_index: int = Field(description="the most probable class")
    label: str = Field(description="its label")
    probabilities: list[float] = Field(
        description="one probability per class, in the order of the model's outputs"
    )
    top: list[RankedClass] = Field(description="the most probable classes, best first")


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """The classes of one image.

    logits, probabilities: float32 (classes,). labels: one a class.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    labels: tuple[str, ...]

    @property
    def class_index(self) -> int:
        """The most probable class; among equals the first."""
        return int(self.probabilities.argmax())

    @property
    def label(self) -> str:
        """The label of the most probable class."""
        return self.labels[self.class_index]

    def top(self, count: int) -> list[int]:
        """The `count` most probable classes, best first; among equals the first."""
        return best_first(self.probabilities, count)

    def to_dict(self, top: int) -> dict[str, Any]:
        """The fields of `ClassificationAnswer`; see `Answer`. `probabilities` stays an array."""
        return {
            "class_index": self.class_index,
            "label": self.label,
            "probabilities": self.probabilities,
            "top": ranked(self.top(top), self.probabilities, self.labels),
        }


class ClassificationTask(LabelPerOutput):
    """Logits, float32 (n, classes), and the softmax of them; see `Task`."""

    name = "classification"
    answer_model: type[BaseModel] = ClassificationAnswer
    golden_kind = "class"
    explains = True
    has_classes = True

    def parameters(self) -> dict[str, Any]:
        """None; see `Task`."""
        return {}

    def describe(self, labels: tuple[str, ...]) -> str:
        """How many classes; see `Task`."""
        return f"has {len(labels)} classes"

    def answer(
        self, output: NDArray[np.float32], labels: tuple[str, ...], size: Size = (1, 1)
    ) -> Classification:
        """The classes of one image; see `Task`."""
        return Classification(output, softmax(output), labels)

    def scores(self, outputs: Outputs) -> Probabilities:
        """The probabilities of each image."""
        return softmax(outputs)

    def agree(self, scores: Probabilities, reference: Probabilities, margin: float) -> Comparison:
        """The largest difference of a probability, and whether the top class is the same; see `Task`.

        The top class is clear where its probability leads the second one by more than `margin`.
        """
        differences = finite_or_infinite(np.abs(scores - reference).max(-1))
        same = np.isfinite(differences) & (scores.argmax(-1) == reference.argmax(-1))
        if reference.shape[-1] == 1:  # one class is always the top one
            return Comparison(differences, same, np.zeros_like(same), np.ones_like(same))
        first, second = np.partition(reference, (-1, -2), -1)[:, :-3:-1].T
        clear = first - second > margin
        return Comparison(differences, same, clear, same | ~clear)

    def check_golden(
        self,
        outputs: Outputs,
        golden: Sequence[Golden],
        labels: tuple[str, ...],
        tolerance: float,
        sizes: Sequence[Size] = (),
    ) -> list[GoldenResult]:
        """Whether the images are given their classes, with the probabilities that are known; see `Task`."""
        return [
            check_class(row, one, labels, tolerance)
            for row, one in zip(self.scores(outputs), golden, strict=True)
        ]

    def golden(self, answer: Classification) -> dict[str, Any]:
        """Class and probability; see `Task`."""
        best = answer.class_index
        return {"class_index": best, "probability": round(float(answer.probabilities[best]), 6)}

    def same(self, answer: Classification, other: Classification) -> bool:
        """Whether both are of the same class; see `Task`."""
        return answer.class_index == other.class_index

    comparison_query = ""

    def compare(self, answer: Classification, fields: Mapping[str, Any]) -> Compared:
        """Whether both are of the same class, by index and label; see `Task`."""
        same = (answer.class_index, answer.label) == (fields["class_index"], fields["label"])
        return Compared(same, largest_difference(answer.probabilities, fields["probabilities"]))

    def target(self, class_index: int) -> Target:
        """The class's own output; see `Task`."""
        return Target(
            class_index, 1, lambda outputs: outputs[:, class_index] - np.logaddexp.reduce(outputs, axis=1)
        )

    def tensor_forms(self, classes: int) -> tuple[TensorForm, ...]:
        """Probabilities, logits, label and class index; see `Task`."""
        return (
            TensorForm("probabilities", "FP32", (-1, classes), ranked=True),
            TensorForm("logits", "FP32", (-1, classes), ranked=True),
            TensorForm("label", "BYTES", (-1,)),
            TensorForm("class_index", "INT64", (-1,)),
        )

    def tensor(self, name: str, answers: Sequence[Classification]) -> TensorValues:
        """One of `tensor_forms`; see `Task`."""
        if name == "label":
            return [answer.label.encode() for answer in answers]
        if name == "class_index":
            return np.array([answer.class_index for answer in answers], np.int64)
        return np.stack([answer.logits if name == "logits" else answer.probabilities for answer in answers])

    def count(self, answer: Classification) -> None:
        """Count the top class and its probability."""
        count_prediction(answer.label, float(answer.probabilities[answer.class_index]))

    @staticmethod
    def rows(answer: Mapping[str, Any]) -> list[Row]:
        """The most probable classes; see `Task`."""
        return ranked_rows(answer["top"])


CLASSIFICATION = ClassificationTask()


def softmax(logits: Outputs) -> Probabilities:
    """Probabilities of `logits`, float32 (..., classes), along the last axis; only infinity is too large."""
    with np.errstate(over="ignore", invalid="ignore"):
        exponents = logits - np.maximum.reduce(logits, -1, keepdims=True)
        np.exp(exponents, out=exponents)
        exponents /= np.add.reduce(exponents, -1, keepdims=True)
    return exponents


def best_first(probabilities: NDArray[np.float32], count: int) -> list[int]:
    """The indices of the `count` largest of `probabilities`, largest first; among equals the first."""
    if count > _FEW:
        order: list[int] = np.argsort(-probabilities, kind="stable")[:count].tolist()
        return order
    best: list[int] = []
    left = probabilities.copy()
    for _ in range(min(count, len(left))):
        best.append(int(left.argmax()))
        left[best[-1]] = -1
    return best


def ranked(
    indices: Sequence[int], probabilities: NDArray[np.float32], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """The classes `indices` as the fields of `RankedClass`."""
    return [
        {"class_index": index, "label": labels[index], "probability": float(probabilities[index])}
        for index in indices
    ]


def ranked_rows(classes: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row for each of `classes`, which have the fields of `RankedClass`."""
    return [Row(one["label"], f"{100 * one['probability']:.1f} %", one["probability"]) for one in classes]


def check_class(
    probabilities: NDArray[np.float32],
    golden: Golden,
    labels: Sequence[str],
    tolerance: float,
    given: int | None = None,
) -> GoldenResult:
    """Whether the class is the one that `golden` states, with its probability out of float32 (classes,).

    given: the class that is answered; by default the most probable one.
    """
    assert golden.class_index is not None
    if not np.isfinite(probabilities).all():
        return GoldenResult(np.inf, "its probabilities are not numbers")
    if golden.class_index >= len(probabilities):
        return GoldenResult(0.0, f"there is no class {golden.class_index} among {len(probabilities)}")
    probability, top = float(probabilities[golden.class_index]), given
    if top is None:
        top = int(probabilities.argmax())
    difference = 0.0 if golden.probability is None else abs(probability - golden.probability)
    if top != golden.class_index:
        got, wanted = (f"{index} ({labels[index]})" for index in (top, golden.class_index))
        return GoldenResult(difference, f"class {got}, and not {wanted}")
    if difference > tolerance:
        reason = f"probability {probability:.3f}, and not {golden.probability} ± {tolerance}"
        return GoldenResult(difference, reason)
    return GoldenResult(difference)
