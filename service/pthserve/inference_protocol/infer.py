"""Infer: the outputs of an inference, chosen and shaped as the request asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pthserve.errors import MalformedRequest
from pthserve.inference_protocol.bounds import MAX_OUTPUTS, MAX_PARAMETERS
from pthserve.inference_protocol.tensors import Input, Output
from pthserve.tasks.base import TensorForm
from pthserve.tasks.classification import CLASSIFICATION

Parameters = Mapping[str, object]
"""A request's, an input's or an output's parameters: whatever the protocol's extensions define, by name."""


class Answer(Protocol):
    """The answer for one image, as the predictor gives it: float32 (classes,) each, and the best of them."""

    @property
    def logits(self) -> NDArray[np.float32]: ...

    @property
    def probabilities(self) -> NDArray[np.float32]: ...

    @property
    def class_index(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that the request asks for.

    classification: how many of the best classes to give as `value:index:label`; 0 gives the tensor itself.
    binary: whether it goes as binary data.
    """

    name: str
    classification: int = 0
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """An inference request, whichever way it came.

    version: "" takes the one that is served. timeout: seconds that the client grants, or None.
    """

    model: str
    version: str
    id: str
    inputs: tuple[Input, ...]
    wanted: tuple[Wanted, ...]
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """An answered inference: by which model, its outputs, and notes for the log on what it took."""

    model: str
    version: str
    id: str
    outputs: Sequence[Output]
    notes: Mapping[str, object] = field(default_factory=dict)


def output_forms(classes: int) -> tuple[TensorForm, ...]:
    """The outputs of a model that tells `classes` classes apart."""
    return CLASSIFICATION.tensor_forms(classes)


def wanted(name: str, parameters: Parameters, *, binary: bool) -> Wanted:
    """The output called `name`, as its `parameters` ask for it; `binary` is what the request says of all.

    Raises MalformedRequest where a parameter is none that can be served.
    """
    check_parameters(parameters)
    count = parameters.get("classification", 0)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise MalformedRequest(
            "the parameter `classification` must be the number of classes to return: an integer, 1 or greater"
        )
    return Wanted(name, count, flag(parameters, "binary_data", default=binary))


def everything(*, binary: bool) -> tuple[Wanted, ...]:
    """What a request asks for that names no output."""
    return tuple(Wanted(form.name, binary=binary) for form in output_forms(0))


def flag(parameters: Parameters, name: str, *, default: bool = False) -> bool:
    """The boolean parameter called `name`; MalformedRequest where it is none."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise MalformedRequest(f"the parameter `{name}` must be true or false")
    return value


def timeout(parameters: Parameters) -> float | None:
    """Seconds that the request's `timeout` parameter (microseconds) grants, or None; 0 stands for none."""
    value = parameters.get("timeout", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MalformedRequest("the parameter `timeout` must be an integer number of microseconds")
    return value / 1e6 or None


def check_parameters(parameters: Parameters) -> None:
    """Raise MalformedRequest where `parameters` are too many, or point into shared memory: a pod has none."""
    if len(parameters) > MAX_PARAMETERS:
        raise MalformedRequest(
            f"the request has {len(parameters)} parameters in one place; the limit is {MAX_PARAMETERS}"
        )
    if "shared_memory_region" in parameters:
        raise MalformedRequest("shared memory is not supported: send the tensor in the request")


def check(asked: Sequence[Wanted]) -> None:
    """Raise MalformedRequest for an output that is not there, or asked for twice, or has no classes."""
    if len(asked) > MAX_OUTPUTS:
        raise MalformedRequest(f"the request names {len(asked)} outputs; the limit is {MAX_OUTPUTS}")
    ranks = {form.name: len(form.shape) for form in output_forms(0)}
    for want in asked:
        if want.name not in ranks:
            raise MalformedRequest(f"unknown output; the outputs are {', '.join(ranks)}")
        if want.classification and ranks[want.name] != 2:
            raise MalformedRequest(
                f"`classification` can be requested for probabilities or logits, not for {want.name}"
            )
    if len({want.name for want in asked}) < len(asked):
        raise MalformedRequest("an output is requested twice")


def outputs(answers: Sequence[Answer], labels: Sequence[str], asked: Sequence[Wanted]) -> list[Output]:
    """The outputs for a batch of `answers`, in the order of `asked`, which was checked."""
    return [_output(answers, labels, want) for want in asked]


def _output(answers: Sequence[Answer], labels: Sequence[str], want: Wanted) -> Output:
    count = len(answers)
    if want.name in ("probabilities", "logits"):
        scores = np.stack([getattr(answer, want.name) for answer in answers])
        if want.classification:
            return _classification(want, scores, labels)
        return Output(want.name, "FP32", scores.shape, scores, want.binary)
    best = [answer.class_index for answer in answers]
    if want.name == "label":
        return Output(want.name, "BYTES", (count,), [labels[index].encode() for index in best], want.binary)
    return Output(want.name, "INT64", (count,), np.array(best, np.int64), want.binary)


def _classification(want: Wanted, scores: NDArray[np.float32], labels: Sequence[str]) -> Output:
    count = min(want.classification, len(labels))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    texts = [
        f"{row[index]:f}:{index}:{labels[index]}".encode()
        for row, indices in zip(scores, order, strict=True)
        for index in indices
    ]
    return Output(want.name, "BYTES", (len(scores), count), texts, want.binary)
