"""Infer: the outputs of an inference, chosen and shaped as the request asks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pthserve.errors import MalformedRequest
from pthserve.protocol.tensors import Form, Input, Output

Parameters = Mapping[str, object]
"""A request's, an input's or an output's parameters: whatever the protocol's extensions define, by name."""


class Answer(Protocol):
    """The answer for one image, as the predictor gives it: float32 (classes,) each."""

    @property
    def logits(self) -> NDArray[np.float32]: ...

    @property
    def probabilities(self) -> NDArray[np.float32]: ...


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
    wanted: empty asks for every output.
    """

    model: str
    version: str
    id: str
    inputs: tuple[Input, ...]
    wanted: tuple[Wanted, ...]
    timeout: float | None = None
    binary: bool = False


def output_forms(classes: int) -> tuple[Form, ...]:
    """The outputs of a model that tells `classes` classes apart."""
    return (
        Form("probabilities", "FP32", (-1, classes)),
        Form("logits", "FP32", (-1, classes)),
        Form("label", "BYTES", (-1,)),
        Form("class_index", "INT64", (-1,)),
    )


def wanted(name: str, parameters: Parameters, *, binary: bool) -> Wanted:
    """The output called `name`, as its `parameters` ask for it; `binary` is what the request says of all.

    Raises MalformedRequest where a parameter is none that can be served.
    """
    refuse_shared_memory(parameters)
    count = parameters.get("classification", 0)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise MalformedRequest(
            "the parameter classification is how many classes to give: a whole number from 1"
        )
    return Wanted(name, count, flag(parameters, "binary_data", default=binary))


def flag(parameters: Parameters, name: str, *, default: bool = False) -> bool:
    """The boolean parameter called `name`; MalformedRequest where it is none."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise MalformedRequest(f"the parameter {name} is true or false")
    return value


def timeout(parameters: Parameters) -> float | None:
    """Seconds that the request's `timeout` parameter (microseconds) grants, or None; 0 stands for none."""
    value = parameters.get("timeout", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MalformedRequest("the parameter timeout is a whole number of microseconds")
    return value / 1e6 or None


def refuse_shared_memory(parameters: Parameters) -> None:
    """Raise MalformedRequest where `parameters` point into shared memory, which a pod has none of."""
    if "shared_memory_region" in parameters:
        raise MalformedRequest("shared memory is not served: send the tensor in the request")


def outputs(answers: Sequence[Answer], labels: Sequence[str], asked: Sequence[Wanted]) -> list[Output]:
    """The outputs in the order of `asked`, or all where it is empty, for a batch of `answers`.

    Raises MalformedRequest for an output that there is none of, that is asked for twice, or of which no
    classification can be given; and where the numbers sent in led to an answer that is not finite.
    """
    forms = {form.name: form for form in output_forms(len(labels))}
    asked = asked or [Wanted(name) for name in forms]
    unknown = {want.name for want in asked} - forms.keys()
    if unknown:
        raise MalformedRequest(f"there is no such output; the outputs are {', '.join(forms)}")
    if len({want.name for want in asked}) < len(asked):
        raise MalformedRequest("an output is asked for twice")
    logits = np.stack([answer.logits for answer in answers])
    if not np.isfinite(logits).all():
        raise MalformedRequest("the model's answer to these numbers is not finite; are they normalised?")
    probabilities = np.stack([answer.probabilities for answer in answers])
    best = probabilities.argmax(axis=1)
    values: dict[str, Callable[[], NDArray[np.float32] | NDArray[np.int64] | list[bytes]]] = {
        "probabilities": lambda: probabilities,
        "logits": lambda: logits,
        "label": lambda: [labels[index].encode() for index in best],
        "class_index": lambda: best.astype(np.int64),
    }
    made = []
    for want in asked:
        form, array = forms[want.name], values[want.name]()
        if want.classification:
            made.append(_classification(want, array, labels))
        else:
            made.append(Output(form.name, form.datatype, (len(answers), *form.shape[1:]), array))
    return made


def _classification(
    want: Wanted, scores: NDArray[np.float32] | NDArray[np.int64] | list[bytes], labels: Sequence[str]
) -> Output:
    if isinstance(scores, list) or scores.ndim != 2:
        raise MalformedRequest(f"classification is of probabilities or logits, not of {want.name}")
    count = min(want.classification, len(labels))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    texts = [
        f"{row[index]:f}:{index}:{labels[index]}".encode()
        for row, indices in zip(scores, order, strict=True)
        for index in indices
    ]
    return Output(want.name, "BYTES", (len(scores), count), texts)
