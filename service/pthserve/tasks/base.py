"""The protocol of a task. A new task is one module that implements it; no transport knows a task by name.

What some tasks and answers have beside is an abstract class each, since requests ask for them: `isinstance`
takes 0.3 microseconds with an abstract class, and 8 with a protocol.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel

from pthserve.files.golden import Golden
from pthserve.images.cost import Cost

Outputs = NDArray[np.float32]
"""What an engine gives for a batch: float32 (n, outputs)."""

ANY = -1
"""As many outputs as follow from the size of the image."""
BACKGROUND = "__background__"
"""The label of class 0 in torchvision's weights of detectors and segmentation models."""


Size = tuple[int, int]
"""(width, height) in pixels."""

TensorValues = NDArray[np.float32] | NDArray[np.int64] | NDArray[np.uint8] | list[bytes]
"""An array, or for BYTES the elements, flat."""


@dataclass(frozen=True, slots=True)
class TensorForm:
    """A named tensor of the Open Inference Protocol; -1 in its shape is a size that the request chooses.

    ranked: whether it has one number per label, so that the classification extension can name the largest.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    ranked: bool = False


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether answers agree with reference answers.

    difference: the largest difference of a probability, or what the task compares in its place, as a share:
    0 to 1 where answers are probabilities; infinity where an answer is not a number.
    disagreements: one sentence for each image that disagrees.
    """

    difference: float
    disagreements: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether no image disagrees."""
        return not self.disagreements


class Comparison(NamedTuple):
    """How the answers of an engine differ from those of a reference, image by image.

    differences: float32 (n,), the largest difference of a probability, or what the task compares in its
    place, as a share: 0 to 1 where answers are probabilities; infinity where an answer is not a number.
    same: bool (n,), whether the decision is the same, such as the top class; None for a task without one.
    clear: bool (n,), whether the reference's decision is clear: it leads by more than a margin.
    kept: bool (n,), whether each clear decision is the same; True where none is clear.
    """

    differences: NDArray[np.float32]
    same: NDArray[np.bool_] | None = None
    clear: NDArray[np.bool_] | None = None
    kept: NDArray[np.bool_] | None = None


class Compared(NamedTuple):
    """How the answers of two releases for one image compare.

    agrees: whether they are the same for whoever uses them. difference: the largest difference of a
    probability, or what the task compares in its place, as a share.
    """

    agrees: bool
    difference: float


class GoldenResult(NamedTuple):
    """How one golden image did. difference: see `Agreement`; reason: why it disagrees, or ""."""

    difference: float
    reason: str = ""


class Target(NamedTuple):
    """What a heat map explains.

    output: the index of the model's output that speaks for the class; sign: -1 where it speaks against it.
    log_probability: the class's, of each row of outputs: float32 (n, outputs) to (n,).
    """

    output: int
    sign: int
    log_probability: Callable[[Outputs], NDArray[np.float32]]


class Row(NamedTuple):
    """A line of an answer as a person is shown it: a name, a text, and the length of a bar, 0 to 1."""

    name: str
    text: str
    bar: float | None = None


class Answer(Protocol):
    """What a model says of one image; each task has its own type."""

    def to_dict(self, top: int) -> dict[str, Any]:
        """The answer as the fields of the JSON that `/predict` and `pthserve predict` give.

        Args:
            top: how many alternatives to list, where the task ranks some.
        """


class Drawn(ABC):
    """What an answer may have beside: a picture of it. size: of the image that it is of."""

    __slots__ = ()

    size: Size

    @abstractmethod
    def draw(self, image: Image.Image) -> Image.Image:
        """The answer drawn over the image that it is of, which may be scaled."""


class Work(NamedTuple):
    """Something to be computed where there are memory and time for it. cost: what `run` takes at most."""

    cost: Cost
    run: Callable[[], Any]


class Deferred(ABC):
    """What an answer may have beside: most of it is still to be computed, which takes as long as decoding."""

    __slots__ = ()

    @property
    @abstractmethod
    def computing(self) -> Work:
        """Computes it, once; without it, it is computed when it is first needed."""

    @property
    @abstractmethod
    def writing(self) -> Cost:
        """What writing all of it takes at most, as a tensor or a picture."""


class Encoded(ABC):
    """What an answer may have beside: it is a picture itself, beside the one that `Drawn` gives."""

    __slots__ = ()

    overlaid: bool
    """Whether the request asks for the one that is drawn over the image."""

    @property
    @abstractmethod
    def writing(self) -> Cost:
        """What writing it takes at most."""

    @abstractmethod
    def png(self) -> bytes:
        """The picture as PNG, at the size of the image."""


class Parameter(NamedTuple):
    """A parameter of a request: its name, what it does, and its type as a JSON schema."""

    name: str
    description: str
    schema: Mapping[str, Any]


class Selects(ABC):
    """What a task may have beside: requests say how much of an answer they want.

    Such answers may be long, and are written beside the event loop.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def query(self) -> tuple[Parameter, ...]:
        """The parameters of a request."""

    @abstractmethod
    def selection(self, query: Mapping[str, str]) -> Callable[[Any], Answer]:
        """What makes of an answer what a request with these parameters asks for.

        Raises ValueError where one of them cannot be; the message says why.
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

    golden_kind: str
    """What a golden image of this task states; see `Golden.kind`."""

    explains: bool
    """Whether it has classes, of which a heat map can be made."""

    has_classes: bool
    """Whether its labels are of classes, which a card or a file may name."""

    def parameters(self) -> dict[str, Any]:
        """What else a model card states about the task, as plain values; `choice.make` takes them again."""

    def labels(self, stated: tuple[str, ...] | None, outputs: int) -> tuple[str, ...]:
        """The labels of a model with so many outputs, where the card states those, or none.

        Raises ValueError where their number cannot be; the message says why.
        """

    def outputs(self, labels: tuple[str, ...]) -> int:
        """How many outputs a model with these labels has; ANY where that depends on the image."""

    def describe(self, labels: tuple[str, ...]) -> str:
        """What such a model does, as a verb phrase; another model may replace it only if it does the same."""

    def answer(self, output: NDArray[np.float32], labels: tuple[str, ...], size: Size = (1, 1)) -> Answer:
        """The answer for one image of this size, out of its row of the engine's outputs, which is finite."""

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """What `agree` compares, one row an image, as wide as the outputs: probabilities, for example."""

    def agree(self, scores: NDArray[np.float32], reference: NDArray[np.float32], margin: float) -> Comparison:
        """How `scores` differ from those of a reference engine, row by row; both float32 (n, outputs).

        Args:
            margin: by how much of a probability a decision of the reference leads at least to be clear.
        """

    def check_golden(
        self,
        outputs: Outputs,
        golden: Sequence[Golden],
        labels: tuple[str, ...],
        tolerance: float,
        sizes: Sequence[Size] = (),
    ) -> list[GoldenResult]:
        """How the golden images did, all of `golden_kind`, each by its row of `outputs` and its size.

        Rows are of one length: where the number of outputs is ANY, those of images of one size.
        """

    def golden(self, answer: Any) -> dict[str, Any]:
        """The fields of a `Golden` that states this answer; one that is a file has its bytes."""

    def same(self, answer: Any, other: Any) -> bool:
        """Whether two models' answers for an image are the same for whoever uses them."""

    comparison_query: str
    """The query of a request to `/predict` whose JSON `compare` can read; "" for none."""

    def compare(self, answer: Any, fields: Mapping[str, Any]) -> Compared:
        """How an answer compares with the JSON that another release's `/predict` gave for the same image.

        Labels and indices must both be the same: clients use either. As `same` for the rest.

        Raises KeyError, TypeError or ValueError where `fields` are not an answer of this task.
        """

    def target(self, class_index: int) -> Target:
        """What a heat map of this class explains; only where the task `explains`."""

    def tensor_forms(self, classes: int) -> tuple[TensorForm, ...]:
        """The outputs that an Open Inference Protocol request may ask for.

        Args:
            classes: how many labels the model has.
        """

    def tensor(self, name: str, answers: Sequence[Any]) -> TensorValues:
        """The output called `name` of a batch of this task's answers."""

    def count(self, answer: Any) -> None:
        """Count `answer` in the metrics."""

    @staticmethod
    def rows(answer: Mapping[str, Any]) -> list[Row]:
        """The fields of an answer's JSON as lines for a person."""


def finds(task: Task) -> bool:
    """Whether the answers are objects or classes of pixels: a label is then of a class, not of an output."""
    return task.golden_kind in ("boxes", "class_map")


class LabelPerOutput:
    """The labels of a task with one for each output; see `Task`."""

    __slots__ = ()

    def labels(self, stated: tuple[str, ...] | None, outputs: int) -> tuple[str, ...]:
        """One an output; without any, the outputs' numbers; see `Task`."""
        if stated is None:
            return tuple(map(str, range(outputs)))
        if len(stated) != outputs:
            raise ValueError(f"there are {len(stated)} labels, but the model has {outputs} outputs")
        return stated

    def outputs(self, labels: tuple[str, ...]) -> int:
        """As many as labels; see `Task`."""
        return len(labels)


def labels_with_background(stated: tuple[str, ...] | None, outputs: int, hint: str) -> tuple[str, ...]:
    """Return a label for each of the `outputs` classes, of which class 0 may be the background.

    Args:
        stated: the labels of the card, without class 0's where there is one fewer; None: the numbers.
        hint: ends the message for any other number of labels.

    Raises:
        ValueError: there are more or fewer labels than that.
    """
    if stated is None:
        return tuple(map(str, range(outputs)))
    if len(stated) == outputs - 1:
        return BACKGROUND, *stated
    if len(stated) != outputs:
        raise ValueError(f"there are {len(stated)} labels, but the model has {outputs} classes{hint}")
    return stated


def finite_or_infinite(differences: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """`differences` as float32, with infinity in place of what is not a number."""
    found: NDArray[np.float32] = np.nan_to_num(differences, nan=np.inf, posinf=np.inf).astype(np.float32)
    return found


def largest_difference(values: NDArray[np.float32], others: Sequence[float]) -> float:
    """The largest difference of two lists of numbers; 1 if lengths differ, or where there is no number."""
    found = np.asarray(others, np.float32)
    if found.shape != values.shape or not values.size:
        return 1.0
    return float(np.nan_to_num(np.abs(values - found).max(), nan=1.0, posinf=1.0))


def number(
    query: Mapping[str, str], name: str, least: float, most: float, *, whole: bool = False
) -> float | None:
    """The number that `query` has under `name`, or None; ValueError where it is not within the bounds."""
    if name not in query:
        return None
    try:
        value = int(query[name]) if whole else float(query[name])
    except ValueError:
        value = float("nan")
    if len(query[name]) > 32 or not least <= value <= most:
        kind = "an integer" if whole else "a number"
        bounds = f"{least:g} or greater" if whole else f"from {least:g} to {most:g}"
        raise ValueError(f"`{name}` must be {kind}, {bounds}")
    return value
