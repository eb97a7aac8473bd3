"""Embedding: the outputs are a vector that stands for the image, such as a model without a head gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pthserve.files.golden import Golden
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

SAME = 0.9
"""Two models' vectors, of which one is to replace the other, are the same from this cosine similarity on."""
_SHORTEST = 1e-12
"""No vector is divided by less than this, as in PyTorch's `normalize`."""
_SHOWN = 6
"""Numbers of a vector that a person is shown."""

_EXAMPLE: dict[str, JsonValue] = {"task": "embedding", "embedding": [0.6, 0.0, 0.8]}


class EmbeddingAnswer(BaseModel):
    """The vector of an image, as JSON."""

    model_config = ConfigDict(defer_build=True, json_schema_extra={"examples": [_EXAMPLE]})

    task: str = Field(description="embedding")
    embedding: list[float] = Field(
        description="the vector, of length 1 where the model card has `normalize: true`"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The vector of one image: float32 (dimensions,)."""

    vector: NDArray[np.float32]

    def to_dict(self, top: int) -> dict[str, Any]:
        """The fields of `EmbeddingAnswer`; see `Answer`. `embedding` stays an array."""
        return {"task": EmbeddingTask.name, "embedding": self.vector}


@dataclass(frozen=True, slots=True)
class EmbeddingTask:
    """Vectors, float32 (n, dimensions); see `Task`. normalize: whether they are scaled to a length of 1.

    Two vectors differ by 1 minus their cosine similarity, or, where that is more, by the share by which their
    lengths differ.
    """

    dimensions: int
    normalize: bool = False

    name = "embedding"
    answer_model = EmbeddingAnswer
    golden_kind = "vector"
    explains = False
    has_classes = False

    def parameters(self) -> dict[str, Any]:
        """Dimensions, and whether vectors are normalised; see `Task`."""
        return {"dimensions": self.dimensions, "normalize": self.normalize}

    def labels(self, stated: tuple[str, ...] | None, outputs: int) -> tuple[str, ...]:
        """None; see `Task`."""
        if stated:
            raise ValueError("an embedding has no labels; remove them")
        return ()

    def outputs(self, labels: tuple[str, ...]) -> int:
        """The dimensions; see `Task`."""
        return self.dimensions

    def describe(self, labels: tuple[str, ...]) -> str:
        """The kind of vectors; see `Task`."""
        return f"returns {'normalised ' if self.normalize else ''}vectors of {self.dimensions} numbers"

    def answer(self, output: NDArray[np.float32], labels: tuple[str, ...], size: Size = (1, 1)) -> Embedding:
        """The vector of one image; see `Task`."""
        return Embedding(self.scores(output))

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """The vectors, as they are answered."""
        if not self.normalize:
            return outputs
        scaled = outputs / np.maximum(_lengths(outputs), np.float32(_SHORTEST))
        return scaled.astype(np.float32, copy=False)

    def agree(self, scores: NDArray[np.float32], reference: NDArray[np.float32], margin: float) -> Comparison:
        """By how much vectors differ from reference vectors; a vector is not a decision; see `Task`."""
        results = [_compared(*each, np.inf) for each in zip(scores, reference, strict=True)]
        return Comparison(finite_or_infinite(np.array([result.difference for result in results])))

    def check_golden(
        self,
        outputs: Outputs,
        golden: Sequence[Golden],
        labels: tuple[str, ...],
        tolerance: float,
        sizes: Sequence[Size] = (),
    ) -> list[GoldenResult]:
        """Whether the images are given their vectors; see `Task`."""
        results = []
        for vector, one in zip(self.scores(outputs), golden, strict=True):
            assert one.vector is not None
            if len(one.vector) != len(vector):
                reason = f"a vector of {len(one.vector)} numbers is stated, and the model gives {len(vector)}"
                results.append(GoldenResult(0.0, reason))
            else:
                results.append(_compared(vector, np.array(one.vector, np.float32), tolerance))
        return results

    def golden(self, answer: Embedding) -> dict[str, Any]:
        """The vector; see `Task`."""
        return {"vector": tuple(float(f"{value:.6g}") for value in answer.vector)}

    def same(self, answer: Embedding, other: Embedding) -> bool:
        """Whether the cosine similarity of both is at least SAME; see `Task`."""
        return _cosine(answer.vector, other.vector) >= SAME

    comparison_query = ""

    def compare(self, answer: Embedding, fields: Mapping[str, Any]) -> Compared:
        """As `same`; the difference is 1 minus the cosine similarity; see `Task`."""
        other = Embedding(np.asarray(fields["embedding"], np.float32))
        if other.vector.shape != answer.vector.shape:
            return Compared(False, 1.0)
        return Compared(self.same(answer, other), 1 - _cosine(answer.vector, other.vector))

    def target(self, class_index: int) -> Target:
        """None: there are no classes."""
        raise NotImplementedError

    def tensor_forms(self, classes: int) -> tuple[TensorForm, ...]:
        """The vector; see `Task`."""
        return (TensorForm("embedding", "FP32", (-1, self.dimensions)),)

    def tensor(self, name: str, answers: Sequence[Embedding]) -> TensorValues:
        """One of `tensor_forms`; see `Task`."""
        return np.stack([answer.vector for answer in answers])

    def count(self, answer: Embedding) -> None:
        """Nothing: no number of a vector means anything alone."""

    @staticmethod
    def rows(answer: Mapping[str, Any]) -> list[Row]:
        """The size of the vector, its length and its first numbers; see `Task`."""
        vector = answer["embedding"]
        first = ", ".join(f"{value:.4g}" for value in vector[:_SHOWN])
        more = ", ..." if len(vector) > _SHOWN else ""
        length = float(np.linalg.norm(np.asarray(vector)))
        return [Row(f"{len(vector)} numbers, length {length:.4g}", first + more)]


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return lengths


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The cosine similarity of two vectors; 1 of two zeros, and 0 of a zero and anything else."""
    lengths = float(_lengths(one)[0]), float(_lengths(other)[0])
    if not all(lengths):
        return float(lengths[0] == lengths[1])
    return float(one.astype(np.float64) @ other) / lengths[0] / lengths[1]


def _compared(vector: NDArray[np.float32], reference: NDArray[np.float32], tolerance: float) -> GoldenResult:
    if not np.isfinite(vector).all():
        return GoldenResult(np.inf, "its vector holds values that are not numbers")
    similarity = _cosine(vector, reference)
    lengths = float(_lengths(vector)[0]), float(_lengths(reference)[0])
    longer = abs(lengths[0] - lengths[1]) / lengths[1] if lengths[1] else float(lengths[0] > 0)
    difference = max(1 - similarity, longer, 0.0)
    if difference <= tolerance:
        return GoldenResult(difference)
    if 1 - similarity > tolerance:
        reason = f"its vector has a cosine similarity of {similarity:.4f}, below 1 - {tolerance}"
    else:
        reason = f"its vector has length {lengths[0]:.6g}, and not {lengths[1]:.6g}"
    return GoldenResult(difference, reason)
