"""Multilabel: any number of labels for an image, each with a probability of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pthserve.files.golden import Golden
from pthserve.metrics import count_labels
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
from pthserve.tasks.classification import RankedClass, best_first, ranked, ranked_rows

THRESHOLD = 0.5
"""The probability from which on a label applies, unless the card states another."""

_EXAMPLE: dict[str, JsonValue] = {
    "task": "multilabel",
    "labels": [{"class_index": 2, "label": "beach", "probability": 0.9}],
    "threshold": 0.5,
    "probabilities": [0.2, 0.1, 0.9],
    "top": [
        {"class_index": 2, "label": "beach", "probability": 0.9},
        {"class_index": 0, "label": "people", "probability": 0.2},
        {"class_index": 1, "label": "dog", "probability": 0.1},
    ],
}


class MultiLabelAnswer(BaseModel):
    """The labels of an image, as JSON."""

    model_config = ConfigDict(defer_build=True, json_schema_extra={"examples": [_EXAMPLE]})

    task: str = Field(description="multilabel")
    labels: list[RankedClass] = Field(
        description="the labels whose probability is at least the threshold, most probable first"
    )
    threshold: float = Field(description="the probability from which on a label applies")
    probabilities: list[float] = Field(
        description="one probability per label, in the order of the model's outputs"
    )
    top: list[RankedClass] = Field(description="the most probable labels, most probable first")


@dataclass(frozen=True, slots=True, eq=False)
class MultiLabel:
    """The labels of one image.

    logits, probabilities: float32 (labels,). labels: the names of all. threshold: the probability from which
    on a label applies.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    labels: tuple[str, ...]
    threshold: float

    @property
    def indices(self) -> list[int]:
        """The indices of the labels that apply, most probable first."""
        return best_first(self.probabilities, int(self.applies.sum()))

    @property
    def names(self) -> list[str]:
        """The labels that apply, most probable first."""
        return [self.labels[index] for index in self.indices]

    @property
    def applies(self) -> NDArray[np.bool_]:
        """For each label whether it applies: bool (labels,)."""
        return self.probabilities >= np.float32(self.threshold)

    @property
    def class_index(self) -> int:
        """The most probable label, whether it applies or not; among equals the first."""
        return int(self.probabilities.argmax())

    def top(self, count: int) -> list[int]:
        """The `count` most probable labels, most probable first; among equals the first."""
        return best_first(self.probabilities, count)

    def to_dict(self, top: int) -> dict[str, Any]:
        """The fields of `MultiLabelAnswer`; see `Answer`. `probabilities` stays an array."""
        return {
            "task": MultiLabelTask.name,
            "labels": ranked(self.indices, self.probabilities, self.labels),
            "threshold": self.threshold,
            "probabilities": self.probabilities,
            "top": ranked(self.top(top), self.probabilities, self.labels),
        }


@dataclass(frozen=True, slots=True)
class MultiLabelTask(LabelPerOutput):
    """Logits, float32 (n, labels), and the sigmoid of each; see `Task`.

    threshold: the probability from which on a label applies, 0 to 1.
    """

    threshold: float = THRESHOLD

    name = "multilabel"
    answer_model = MultiLabelAnswer
    golden_kind = "labels"
    explains = True
    has_classes = True

    def parameters(self) -> dict[str, Any]:
        """The threshold; see `Task`."""
        return {"threshold": self.threshold}

    def describe(self, labels: tuple[str, ...]) -> str:
        """How many labels; see `Task`."""
        return f"has {len(labels)} labels"

    def answer(self, output: NDArray[np.float32], labels: tuple[str, ...], size: Size = (1, 1)) -> MultiLabel:
        """The labels of one image; see `Task`."""
        return MultiLabel(output, sigmoid(output), labels, self.threshold)

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """The probabilities of each image's labels."""
        return sigmoid(outputs)

    def agree(self, scores: NDArray[np.float32], reference: NDArray[np.float32], margin: float) -> Comparison:
        """The largest difference of a probability, and whether the same labels apply; see `Task`.

        A label is clear where its probability is further than half of `margin` from the threshold: between
        two classes, a lead of `margin` is that far from 0.5. An image is clear where one of its labels is.
        """
        differences = finite_or_infinite(np.abs(scores - reference).max(-1))
        numbers = np.isfinite(differences)
        changed = (scores >= self.threshold) != (reference >= self.threshold)
        clear = np.abs(reference - self.threshold) > margin / 2
        kept = numbers & ~(changed & clear).any(-1)
        return Comparison(differences, numbers & ~changed.any(-1), clear.any(-1), kept)

    def check_golden(
        self,
        outputs: Outputs,
        golden: Sequence[Golden],
        labels: tuple[str, ...],
        tolerance: float,
        sizes: Sequence[Size] = (),
    ) -> list[GoldenResult]:
        """Whether the images are given their labels, with the probabilities that are known; see `Task`.

        A label whose probability is within `tolerance` of the threshold may be given or not.
        """
        return [
            self._check(row, one, labels, tolerance)
            for row, one in zip(self.scores(outputs), golden, strict=True)
        ]

    def _check(
        self, row: NDArray[np.float32], golden: Golden, labels: tuple[str, ...], tolerance: float
    ) -> GoldenResult:
        if not np.isfinite(row).all():
            return GoldenResult(np.inf, "its probabilities are not numbers")
        known = golden.probabilities or (None,) * len(row)
        if len(known) != len(row):
            return GoldenResult(
                0.0, f"{len(known)} probabilities are stated, and there are {len(row)} labels"
            )
        expected = np.array([np.nan if one is None else one for one in known])
        apart = np.nan_to_num(np.abs(row - expected))
        difference = float(apart.max())
        if golden.labels is not None:
            if beyond := [index for index in golden.labels if index >= len(row)]:
                return GoldenResult(difference, f"there is no label {beyond[0]} among {len(row)}")
            stated = np.isin(np.arange(len(row)), golden.labels)
            missing = stated & (row < self.threshold - tolerance)
            surplus = ~stated & (row >= self.threshold + tolerance)
            if (missing | surplus).any():
                index = int((missing | surplus).argmax())
                applies = "does not apply, and should" if missing[index] else "applies, and should not"
                name = f"label {index} ({labels[index]})"
                return GoldenResult(difference, f"{name} {applies}: its probability is {row[index]:.3f}")
        if difference > tolerance:
            index = int(apart.argmax())
            reason = f"{labels[index]} has probability {row[index]:.3f}, and not {known[index]} ± {tolerance}"
            return GoldenResult(difference, reason)
        return GoldenResult(difference)

    def golden(self, answer: MultiLabel) -> dict[str, Any]:
        """The labels that apply, and the probabilities of all; see `Task`."""
        return {
            "labels": tuple(sorted(answer.indices)),
            "probabilities": tuple(round(float(one), 6) for one in answer.probabilities),
        }

    def same(self, answer: MultiLabel, other: MultiLabel) -> bool:
        """Whether both give the same labels; see `Task`."""
        return np.array_equal(answer.applies, other.applies)

    comparison_query = ""

    def compare(self, answer: MultiLabel, fields: Mapping[str, Any]) -> Compared:
        """Whether both give the same labels, by index and name; see `Task`."""
        ours = {(index, answer.labels[index]) for index in answer.indices}
        theirs = {(one["class_index"], one["label"]) for one in fields["labels"]}
        return Compared(ours == theirs, largest_difference(answer.probabilities, fields["probabilities"]))

    def target(self, class_index: int) -> Target:
        """The label's own output; see `Task`."""
        return Target(class_index, 1, lambda outputs: log_sigmoid(outputs[:, class_index]))

    def tensor_forms(self, classes: int) -> tuple[TensorForm, ...]:
        """Probabilities, logits, and for each label whether it applies, 0 or 1; see `Task`."""
        return (
            TensorForm("probabilities", "FP32", (-1, classes), ranked=True),
            TensorForm("logits", "FP32", (-1, classes), ranked=True),
            TensorForm("applies", "INT64", (-1, classes)),
        )

    def tensor(self, name: str, answers: Sequence[MultiLabel]) -> TensorValues:
        """One of `tensor_forms`; see `Task`."""
        if name == "applies":
            return np.stack([answer.applies for answer in answers]).astype(np.int64)
        return np.stack([answer.logits if name == "logits" else answer.probabilities for answer in answers])

    def count(self, answer: MultiLabel) -> None:
        """Count the labels that apply, and the largest probability."""
        count_labels(answer.names, float(answer.probabilities.max()))

    @staticmethod
    def rows(answer: Mapping[str, Any]) -> list[Row]:
        """The most probable labels, and which of them apply; see `Task`."""
        least = answer["threshold"]
        return [
            row._replace(text=f"{row.text}{' *' if one['probability'] >= least else '  '}")
            for row, one in zip(ranked_rows(answer["top"]), answer["top"], strict=True)
        ]


def sigmoid(logits: Outputs) -> NDArray[np.float32]:
    """Probabilities of `logits`, each on its own."""
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-logits))).astype(np.float32, copy=False)


def log_sigmoid(logits: Outputs) -> NDArray[np.float32]:
    """Logarithms of the probabilities of `logits`."""
    return -np.logaddexp(np.float32(0), -logits).astype(np.float32, copy=False)
