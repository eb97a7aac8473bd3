"""Regression: the outputs are the answer, values with names and units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pthserve.files.golden import Golden
from pthserve.files.stated_task import NamedOutput
from pthserve.metrics import count_value
from pthserve.tasks.base import (
    Compared,
    Comparison,
    GoldenResult,
    Outputs,
    Row,
    Size,
    Target,
    TensorForm,
    TensorValues,
    finite_or_infinite,
)

SAME = 0.1
"""Two models' values, of which one is to replace the other, are the same up to this share of their scale."""

_EXAMPLE: dict[str, JsonValue] = {
    "task": "regression",
    "values": {"age": 31.5, "weight": 4.25},
    "units": {"age": "years", "weight": "kg"},
}


class RegressionAnswer(BaseModel):
    """The values that a model gives for an image, as JSON."""

    model_config = ConfigDict(defer_build=True, json_schema_extra={"examples": [_EXAMPLE]})

    task: str = Field(description="regression")
    values: dict[str, float] = Field(description="one value per output, by its name")
    units: dict[str, str] = Field(description="the unit of each output that has one, by the output's name")


@dataclass(frozen=True, slots=True, eq=False)
class Regression:
    """The values of one image. values: float32 (outputs,). outputs: their names and units."""

    values: NDArray[np.float32]
    outputs: tuple[NamedOutput, ...]

    def __getitem__(self, name: str) -> float:
        """The value of the output called `name`."""
        return self.to_dict(0)["values"][name]  # type: ignore[no-any-return]

    def to_dict(self, top: int) -> dict[str, Any]:
        """The fields of `RegressionAnswer`; see `Answer`."""
        values = zip(self.outputs, self.values.tolist(), strict=True)
        return {
            "task": RegressionTask.name,
            "values": {output.name: value for output, value in values},
            "units": {output.name: output.unit for output in self.outputs if output.unit},
        }


@dataclass(frozen=True, slots=True)
class RegressionTask:
    """Values, float32 (n, outputs); see `Task`.

    named: its outputs, in the order of the model's, which are as many.

    Differences are measured on the scale of each output: the width of its `range` where the card states one,
    else the largest magnitude among the reference's values.
    """

    named: tuple[NamedOutput, ...]

    name = "regression"
    answer_model = RegressionAnswer
    golden_kind = "values"
    explains = False
    has_classes = False

    def parameters(self) -> dict[str, Any]:
        """The outputs; see `Task`."""
        return {"outputs": [output.to_dict() for output in self.named]}

    def labels(self, stated: tuple[str, ...] | None, outputs: int) -> tuple[str, ...]:
        """The names of the outputs; see `Task`."""
        names = tuple(output.name for output in self.named)
        if stated not in (None, names):
            raise ValueError("a regression has no labels; name its values in `outputs`")
        return names

    def outputs(self, labels: tuple[str, ...]) -> int:
        """As many as names; see `Task`."""
        return len(labels)

    def describe(self, labels: tuple[str, ...]) -> str:
        """What is measured; see `Task`."""
        shown = ", ".join(f"{one.name} in {one.unit}" if one.unit else one.name for one in self.named)
        return f"predicts {shown}"

    def answer(self, output: NDArray[np.float32], labels: tuple[str, ...], size: Size = (1, 1)) -> Regression:
        """The values of one image; see `Task`."""
        return Regression(output, self.named)

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """The values themselves."""
        return outputs

    def agree(self, scores: NDArray[np.float32], reference: NDArray[np.float32], margin: float) -> Comparison:
        """By what share of its scale a value differs at most; values are not decisions; see `Task`."""
        apart = np.abs(scores - reference) / self._scales(reference)
        return Comparison(finite_or_infinite(apart.max(-1)))

    def check_golden(
        self,
        outputs: Outputs,
        golden: Sequence[Golden],
        labels: tuple[str, ...],
        tolerance: float,
        sizes: Sequence[Size] = (),
    ) -> list[GoldenResult]:
        """Whether the values that are known are given, within `tolerance` of their scale; see `Task`."""
        count = len(self.named)
        known = np.full((len(golden), count), np.nan, np.float32)
        for row, one in zip(known, golden, strict=True):
            assert one.values is not None
            if len(one.values) == count:
                row[:] = [np.nan if value is None else value for value in one.values]
        apart = np.abs(outputs - known) / self._scales(known)
        apart = np.where(np.isnan(known), 0, apart)
        results = []
        for values, expected, shares, one in zip(outputs, known, apart, golden, strict=True):
            assert one.values is not None
            if len(one.values) != count:
                reason = f"{len(one.values)} values are stated, and there are {count} outputs"
                results.append(GoldenResult(0.0, reason))
                continue
            reason = self._reason(values, expected, shares, tolerance)
            results.append(
                GoldenResult(float(np.nan_to_num(shares, nan=np.inf, posinf=np.inf).max()), reason)
            )
        return results

    def _scales(self, reference: NDArray[np.float32]) -> NDArray[np.float32]:
        """What a difference of 1 is for each output: float32 (outputs,)."""
        largest = np.nan_to_num(np.abs(reference)).max(0, initial=0)
        widths = [one.range[1] - one.range[0] if one.range else np.nan for one in self.named]
        scales = np.where(np.isnan(widths), np.where(largest > 0, largest, 1), widths)
        return scales.astype(np.float32)

    def _reason(
        self,
        values: NDArray[np.float32],
        expected: NDArray[np.float32],
        shares: NDArray[np.float32],
        tolerance: float,
    ) -> str:
        """Why the values of one image, whose differences are `shares` of their scales, disagree, or ""."""
        if not np.isfinite(values).all():
            return "its values are not numbers"
        worst = int(shares.argmax())
        if shares[worst] <= tolerance:
            return ""
        return (
            f"{self.named[worst].name} is {values[worst]:.6g}, and not {expected[worst]:.6g}: "
            f"{shares[worst]:.3f} of its scale off, more than {tolerance}"
        )

    def golden(self, answer: Regression) -> dict[str, Any]:
        """The values; see `Task`."""
        return {"values": tuple(float(f"{value:.7g}") for value in answer.values)}

    def same(self, answer: Regression, other: Regression) -> bool:
        """Whether no value differs by more than SAME of its scale; see `Task`."""
        both = np.stack([answer.values, other.values])
        return bool((np.abs(both[0] - both[1]) <= SAME * self._scales(both)).all())

    comparison_query = ""

    def compare(self, answer: Regression, fields: Mapping[str, Any]) -> Compared:
        """As `same`, of values with the same names and units; see `Task`."""
        ours, values = answer.to_dict(0), fields["values"]
        if values.keys() != ours["values"].keys() or fields["units"] != ours["units"]:
            return Compared(False, 1.0)
        other = Regression(np.array([values[one.name] for one in self.named], np.float32), self.named)
        both = np.stack([answer.values, other.values])
        apart = (np.abs(both[0] - both[1]) / self._scales(both)).max()
        return Compared(self.same(answer, other), float(np.nan_to_num(apart, nan=1.0)))

    def target(self, class_index: int) -> Target:
        """None: there are no classes."""
        raise NotImplementedError

    def tensor_forms(self, classes: int) -> tuple[TensorForm, ...]:
        """The values, in the order of the outputs; see `Task`."""
        return (TensorForm("values", "FP32", (-1, len(self.named))),)

    def tensor(self, name: str, answers: Sequence[Regression]) -> TensorValues:
        """One of `tensor_forms`; see `Task`."""
        return np.stack([answer.values for answer in answers])

    def count(self, answer: Regression) -> None:
        """Count each value."""
        for output, value in zip(answer.outputs, answer.values.tolist(), strict=True):
            count_value(output.name, value)

    @staticmethod
    def rows(answer: Mapping[str, Any]) -> list[Row]:
        """Each value with its unit; see `Task`."""
        units = answer["units"]
        return [
            Row(name, f"{value:.6g} {units.get(name, '')}".rstrip())
            for name, value in answer["values"].items()
        ]
