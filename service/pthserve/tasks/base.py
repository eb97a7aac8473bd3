"""The protocol of a task. A new task is one module that implements it; no transport knows a task by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

Outputs = NDArray[np.float32]
"""What an engine gives for a batch: float32 (n, ...)."""


TensorValues = NDArray[np.float32] | NDArray[np.int64] | list[bytes]
"""An array, or for BYTES the elements, flat."""


@dataclass(frozen=True, slots=True)
class TensorForm:
    """A named tensor of the Open Inference Protocol; -1 in its shape is a size that the request chooses."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether answers agree with reference answers.

    difference: the largest difference of a probability, 0 to 1; infinity where an answer is not a number.
    disagreements: one sentence for each image that disagrees.
    """

    difference: float
    disagreements: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether no image disagrees."""
        return not self.disagreements


class Answer(Protocol):
    """What a model says of one image; each task has its own type."""

    def to_dict(self, top: int) -> dict[str, Any]:
        """The answer as the fields of the JSON that `/predict` and `pthserve predict` give.

        Args:
            top: how many alternatives to list, where the task ranks some.
        """


class Task(Protocol):
    """What the outputs of a model mean."""

    name: str
    """As in `model.yaml` and `/info`."""

    @property
    def answer_model(self) -> type[BaseModel]:
        """The fields of `Answer.to_dict`, for the OpenAPI schema, with one example in `json_schema_extra`.

        Tests validate answers against it; the service does not, since that would cost as much as writing
        them.
        """

    def answer(self, output: NDArray[np.float32], labels: tuple[str, ...]) -> Answer:
        """The answer for one image, out of its row of the engine's outputs, which is finite."""

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """What `compare` compares, one row an image: for classification, probabilities."""

    def compare(
        self, scores: NDArray[np.float32], reference: NDArray[np.float32], tolerance: float
    ) -> Agreement:
        """Whether `scores` agree with those of a reference engine, row by row."""

    def tensor_forms(self, classes: int) -> tuple[TensorForm, ...]:
        """The outputs that an Open Inference Protocol request may ask for.

        Args:
            classes: how many labels the model has.
        """

    def tensor(self, name: str, answers: Sequence[Any]) -> TensorValues:
        """The output called `name` of a batch of this task's answers."""

    def count(self, answer: Any) -> None:
        """Count `answer` in the metrics."""
