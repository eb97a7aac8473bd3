"""Infer: what an inference request wants, and the outputs that answer it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pthserve.errors import MalformedRequest
from pthserve.inference_protocol.bounds import LARGE, MAX_OUTPUTS, MAX_PARAMETERS
from pthserve.inference_protocol.tensors import Input, Output
from pthserve.tasks.base import Task, TensorForm

Parameters = Mapping[str, object]
"""Parameters of a request, an input or an output, by name, as the protocol's extensions define them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that the request names.

    Attributes:
        classification: Number of the most probable classes to return as `value:index:label`; 0 returns the
            tensor itself.
        binary: Whether it is returned as binary data.
    """

    name: str
    classification: int = 0
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """An inference request, over REST or gRPC.

    Attributes:
        version: The version of the model; "" for any.
        wanted: The outputs to return; if empty, all outputs of the model, as binary data if `binary` is set.
        timeout: Seconds that the client allows, or None.
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
    """The answer to a request: the model, its outputs, and fields for the log line."""

    model: str
    version: str
    id: str
    outputs: Sequence[Output]
    notes: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_large(self) -> bool:
        """Whether writing it would hold the event loop for milliseconds."""
        return sum(math.prod(output.shape) for output in self.outputs) >= LARGE

    @property
    def memory(self) -> int:
        """Maximum bytes of the outputs together with what they are written as."""
        return sum(output.memory for output in self.outputs)


def wanted(name: str, parameters: Parameters, *, binary: bool) -> Wanted:
    """Return the output `name` in the form that its `parameters` state.

    Args:
        binary: What the request states for all outputs.

    Raises:
        MalformedRequest: A parameter has a value that is not allowed.
    """
    check_parameters(parameters)
    count = parameters.get("classification", 0)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise MalformedRequest(
            "the parameter `classification` must be the number of classes to return: an integer, 1 or greater"
        )
    return Wanted(name, count, flag(parameters, "binary_data", default=binary))


def everything(forms: Sequence[TensorForm], *, binary: bool) -> tuple[Wanted, ...]:
    """Return what a request that names no outputs wants: all of `forms`."""
    return tuple(Wanted(form.name, binary=binary) for form in forms)


def flag(parameters: Parameters, name: str, *, default: bool = False) -> bool:
    """Return the boolean parameter `name`; raises MalformedRequest if it is not a boolean."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise MalformedRequest(f"the parameter `{name}` must be true or false")
    return value


def timeout(parameters: Parameters) -> float | None:
    """Return the parameter `timeout`, which is in microseconds, in seconds; None if it is 0 or missing."""
    value = parameters.get("timeout", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MalformedRequest("the parameter `timeout` must be an integer number of microseconds")
    return value / 1e6 or None


def check_parameters(parameters: Parameters) -> None:
    """Raise MalformedRequest if there are too many `parameters`, or if they name shared memory."""
    if len(parameters) > MAX_PARAMETERS:
        raise MalformedRequest(
            f"the request has {len(parameters)} parameters in one place; the limit is {MAX_PARAMETERS}"
        )
    if "shared_memory_region" in parameters:
        raise MalformedRequest("shared memory is not supported: send the tensor in the request")


def check(asked: Sequence[Wanted], forms: Sequence[TensorForm]) -> None:
    """Raise MalformedRequest for an output that is unknown, named twice, or without the classes it wants."""
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
    """Return the outputs for a batch of the task's `answers`, in the order of `asked`; see `check`."""
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
