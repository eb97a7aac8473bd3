"""Classification: one class of many, with a probability for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pthserve.metrics import count_prediction
from pthserve.tasks.base import Agreement, Outputs, TensorForm, TensorValues

Probabilities = NDArray[np.float32]
"""float32 (n, classes); each row sums to 1."""

CLEAR_MARGIN = 0.05
"""Where the reference's best probability leads its second by more than this, the top class must be the same.
An answer within the default tolerance of 0.02 cannot swap classes that are more than 0.04 apart."""

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

    class_index: int
    label: str
    probability: float


class ClassificationAnswer(BaseModel):
    """The classes of an image, as JSON."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

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
        if count > _FEW:
            order: list[int] = np.argsort(-self.probabilities, kind="stable")[:count].tolist()
            return order
        best: list[int] = []
        left = self.probabilities.copy()
        for _ in range(min(count, len(left))):
            best.append(int(left.argmax()))
            left[best[-1]] = -1
        return best

    def to_dict(self, top: int) -> dict[str, Any]:
        """The fields of `ClassificationAnswer`; see `Answer`. `probabilities` stays an array."""
        return {
            "class_index": self.class_index,
            "label": self.label,
            "probabilities": self.probabilities,
            "top": [
                {
                    "class_index": index,
                    "label": self.labels[index],
                    "probability": float(self.probabilities[index]),
                }
                for index in self.top(top)
            ],
        }


class ClassificationTask:
    """Logits, float32 (n, classes), and the softmax of them; see `Task`."""

    name = "classification"
    answer_model: type[BaseModel] = ClassificationAnswer

    def answer(self, output: NDArray[np.float32], labels: tuple[str, ...]) -> Classification:
        """The classes of one image; see `Task`."""
        return Classification(output, softmax(output), labels)

    def scores(self, outputs: Outputs) -> Probabilities:
        """The probabilities of each image."""
        return softmax(outputs)

    def compare(self, scores: Probabilities, reference: Probabilities, tolerance: float) -> Agreement:
        """Whether probabilities agree with reference probabilities, row by row.

        They do where the top class is the same, unless the reference's margin is under CLEAR_MARGIN, and no
        probability differs from the reference's by more than `tolerance`.
        """
        if scores.shape != reference.shape:
            return Agreement(np.inf, (f"{scores.shape[-1]} classes, and not {reference.shape[-1]}",))
        differences = np.abs(scores - reference).max(-1)
        reasons = [
            _disagreement(row, expected, float(difference), tolerance)
            for row, expected, difference in zip(scores, reference, differences, strict=True)
        ]
        return Agreement(
            float(np.nan_to_num(differences, nan=np.inf).max(initial=0)),
            tuple(f"image {number}: {reason}" for number, reason in enumerate(reasons) if reason),
        )

    def tensor_forms(self, classes: int) -> tuple[TensorForm, ...]:
        """Probabilities, logits, label and class index; see `Task`."""
        return (
            TensorForm("probabilities", "FP32", (-1, classes)),
            TensorForm("logits", "FP32", (-1, classes)),
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


CLASSIFICATION = ClassificationTask()


def softmax(logits: Outputs) -> Probabilities:
    """Probabilities of `logits`, float32 (..., classes), along the last axis; only infinity is too large."""
    with np.errstate(over="ignore", invalid="ignore"):
        exponents = logits - np.maximum.reduce(logits, -1, keepdims=True)
        np.exp(exponents, out=exponents)
        exponents /= np.add.reduce(exponents, -1, keepdims=True)
    return exponents


def _disagreement(row: Probabilities, expected: Probabilities, difference: float, tolerance: float) -> str:
    if not np.isfinite(difference):
        return "its probabilities are not numbers"
    top, second = np.sort(expected)[::-1][:2] if len(expected) > 1 else (1.0, 0.0)
    if row.argmax() != expected.argmax() and top - second > CLEAR_MARGIN:
        return f"class {row.argmax()}, and not {expected.argmax()}"
    if difference > tolerance:
        return f"a probability is {difference:.3f} off, more than {tolerance}"
    return ""
