"""Infer: the outputs of an inference, chosen and shaped as the request asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pthserve.errors import MalformedRequest
from pthserve.inference_protocol.bounds import MAX_OUTPUTS, MAX_PARAMETERS
from pthserve.inference_protocol.tensors import Input, Output
from pthserve.tasks.base import Task, TensorForm

Parameters = Mapping[str, object]
"""A request's, an input's or an output's parameters: whatever the protocol's extensions define, by name."""


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

    version: "" takes the one that is served. wanted: the outputs; where there are none, all that the model
    has, as binary data where `binary` is set. timeout: seconds that the client grants, or None.
    """

    model: str
    version: str
    id: str
    inputs: tuple[Input, ...]
    wanted: tuple[Wanted, ...]
    timeout: float | None = None
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """An answered inference: by which model, its outputs, and notes for the log on what it took."""

    model: str
    version: str
    id: str
    outputs: Sequence[Output]
    notes: Mapping[str, object] = field(default_factory=dict)


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


def everything(forms: Sequence[TensorForm], *, binary: bool) -> tuple[Wanted, ...]:
    """What a request asks for that names no output, of a model whose outputs are `forms`."""
    return tuple(Wanted(form.name, binary=binary) for form in forms)


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


def check(asked: Sequence[Wanted], forms: Sequence[TensorForm]) -> None:
    """Raise MalformedRequest for an output that is none of `forms`, or asked for twice, or has no classes."""
    if len(asked) > MAX_OUTPUTS:
        raise MalformedRequest(f"the request names {len(asked)} outputs; the limit is {MAX_OUTPUTS}")
    by_name = {form.name: form for form in forms}
    for want in asked:
        if want.name not in by_name:
            raise MalformedRequest(f"unknown output; the outputs are {', '.join(by_name)}")
        if want.classification and not by_name[want.name].ranked:
            ranked = " or ".join(form.name for form in forms if form.ranked)
            raise MalformedRequest(
                f"`classification` can be requested for {ranked}, not for {want.name}"
                if ranked
                else f"`classification` cannot be requested for {want.name}: this model has no classes"
            )
    if len({want.name for want in asked}) < len(asked):
        raise MalformedRequest("an output is requested twice")


def outputs(
    task: Task, answers: Sequence[Any], labels: Sequence[str], asked: Sequence[Wanted]
) -> list[Output]:
    """The outputs for a batch of the task's `answers`, in the order of `asked`, which was checked."""
    datatypes = {form.name: form.datatype for form in task.tensor_forms(len(labels))}
    made = []
    for want in asked:
        values = task.tensor(want.name, answers)
        if want.classification and not isinstance(values, list):
            made.append(_classification(want, values, labels))
        else:
            shape = (len(values),) if isinstance(values, list) else values.shape
            made.append(Output(want.name, datatypes[want.name], shape, values, want.binary))
    return made


def _classification(want: Wanted, scores: NDArray[Any], labels: Sequence[str]) -> Output:
    count = min(want.classification, len(labels))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    texts = [
        f"{row[index]:f}:{index}:{labels[index]}".encode()
        for row, indices in zip(scores, order, strict=True)
        for index in indices
    ]
    return Output(want.name, "BYTES", (len(scores), count), texts, want.binary)
