"""Bodies: an inference as REST carries it, a JSON object and behind it the tensors that are binary."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from pthserve.errors import MalformedRequest, TooLarge
from pthserve.http.json_numbers import CUT, Skeleton
from pthserve.inference_protocol.bounds import MAX_OUTPUTS, MAX_PARAMETERS
from pthserve.inference_protocol.compression import ENCODINGS
from pthserve.inference_protocol.infer import (
    Request,
    Response,
    check_parameters,
    flag,
    timeout,
    wanted,
)
from pthserve.inference_protocol.tensors import Content, Input

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header that says how long the JSON is, where binary tensors follow it; 0: the body is one image."""

MAX_OBJECT = 2**16
"""Most bytes of a JSON object that carries no tensors."""
_MAX_DEPTH = 8
"""How deep the elements of an array are looked for; no shape is as long."""


class Part(BaseModel):
    """Whatever has parameters; those that nobody knows, like fields that nobody knows, are passed over."""

    model_config = ConfigDict(strict=True, defer_build=True)

    parameters: dict[str, Any] | None = Field(
        None,
        max_length=MAX_PARAMETERS,
        description="values by name, as the protocol's extensions define them",
    )


class InferInput(Part):
    """An input tensor; the datatype says which of the model's inputs it is."""

    name: str
    datatype: str = Field(description="BYTES: encoded images; UINT8: pixels; FP32: preprocessed tensors")
    shape: list[int] = Field(description="the first number is how many images there are", fail_fast=True)
    data: list[Any] | None = Field(
        None,
        description="the elements, flat or nested, an image as base64; none where binary data follows",
    )
    cut: Annotated[int | None, SkipJsonSchema()] = Field(None, validation_alias=CUT)


class InferOutput(Part):
    """An output to be answered; the model's metadata names them, such as probabilities or logits."""

    name: str


class InferRequest(Part):
    """What is to be inferred, and which outputs are asked for; all of them where none is named."""

    id: str | None = Field(None, description="comes back in the answer")
    inputs: list[InferInput] = Field(fail_fast=True)
    outputs: list[InferOutput] | None = Field(None, max_length=MAX_OUTPUTS, fail_fast=True)


AnyPart = TypeVar("AnyPart", bound=BaseModel)


def parsed(kind: type[AnyPart], text: bytes | memoryview) -> AnyPart:
    """The JSON object in `text`, none being an empty one.

    Raises MalformedRequest where it is no `kind`, and TooLarge before what is no request is parsed.
    """
    if len(text) > MAX_OBJECT:
        raise TooLarge(f"the JSON has more than {MAX_OBJECT} bytes")
    skeleton = Skeleton(bytes(text))
    valid = validated(kind, skeleton.text)
    skeleton.check()
    return valid


def validated(kind: type[AnyPart], text: bytes) -> AnyPart:
    """The JSON object in `text`, nothing being an empty one; raises MalformedRequest."""
    try:
        return kind.model_validate(orjson.loads(text) if text else {})
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"the JSON cannot be parsed: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the JSON"
        raise MalformedRequest(f"{where[:100]}: {first['msg']}") from error


def split(body: bytes, header_length: str | None) -> tuple[memoryview, memoryview]:
    """JSON and binary data of `body`, as the header of that name says; raises MalformedRequest."""
    view = memoryview(body)
    if header_length is None:
        return view, view[:0]
    # str.isdecimal would let other scripts' digits in, and int() spaces and underscores.
    if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 19:
        raise MalformedRequest(f"{HEADER_LENGTH} must be a number of bytes")
    length = int(header_length)
    if length > len(body):
        raise MalformedRequest(f"{HEADER_LENGTH} is {length}, but the body has only {len(body)} bytes")
    return view[:length], view[length:]


def compressed(encoding: str) -> bool:
    """Whether a body of that Content-Encoding has to be inflated; MalformedRequest for unknown ones."""
    if encoding in ("", "identity"):
        return False
    if encoding not in ENCODINGS:
        raise MalformedRequest(f"Content-Encoding must be {' or '.join(ENCODINGS)}")
    return True


def one_image(image: memoryview, model: str, version: str, *, binary: bool) -> Request:
    """The request that a body makes which is nothing but an image."""
    return Request(model, version, "", (Input("BYTES", (1,), [bytes(image)]),), (), binary=binary)


def read(text: memoryview, data: memoryview, model: str, version: str) -> Request:
    """The request that the JSON `text` and the binary tensors in `data` make; raises as `parsed`."""
    whole = text.obj
    skeleton = Skeleton(whole if isinstance(whole, bytes) and len(whole) == len(text) else bytes(text))
    asked = validated(InferRequest, skeleton.text)
    given = asked.parameters or {}
    check_parameters(given)
    binary = flag(given, "binary_data_output")
    inputs = _inputs(asked, skeleton, data)
    skeleton.check()
    return Request(
        model=model,
        version=version,
        id=asked.id or "",
        inputs=inputs,
        wanted=tuple(wanted(put.name, put.parameters or {}, binary=binary) for put in asked.outputs or ()),
        binary=binary,
        timeout=timeout(given),
    )


def _inputs(asked: InferRequest, skeleton: Skeleton, data: memoryview) -> tuple[Input, ...]:
    inputs = []
    for put in asked.inputs:
        given = put.parameters or {}
        check_parameters(given)
        size = given.get("binary_data_size")
        if [size, put.data, put.cut].count(None) != 2:
            raise MalformedRequest(
                "an input must have either `data` or the parameter `binary_data_size`, not both"
            )
        content: Content
        if put.data is not None:
            content = _put_back(put.data, skeleton)
        elif put.cut is not None:
            content = skeleton.numbers[put.cut]
        elif not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(data):
            raise MalformedRequest(
                f"binary_data_size is {size!r:.30}, but only {len(data)} bytes of data remain"
            )
        else:
            content, data = data[:size], data[size:]
        inputs.append(Input(put.datatype, tuple(put.shape), content))
    if data:
        raise MalformedRequest(
            f"the body has {len(data)} bytes after the last input; check the header {HEADER_LENGTH}"
        )
    return tuple(inputs)


def _put_back(elements: list[Any], skeleton: Skeleton, depth: int = _MAX_DEPTH) -> list[Any]:
    """`elements` with the long strings that were cut out of them, flat or nested."""
    if not skeleton.strings or not depth:
        return elements
    return [
        _put_back(element, skeleton, depth - 1)
        if isinstance(element, list)
        else skeleton.string(element)
        if isinstance(element, str)
        else element
        for element in elements
    ]


def written(answered: Response) -> tuple[bytes, Mapping[str, str]]:
    """Body and headers of an answer."""
    blobs = []
    tensors = []
    for output in answered.outputs:
        tensor: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if output.binary:
            blobs.append(output.to_bytes())
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = output.elements()
        tensors.append(tensor)
    text = orjson.dumps(
        {
            "model_name": answered.model,
            **({"model_version": answered.version} if answered.version else {}),
            **({"id": answered.id} if answered.id else {}),
            "outputs": tensors,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    if not blobs:
        return text, {"Content-Type": "application/json"}
    return b"".join((text, *blobs)), {
        "Content-Type": "application/octet-stream",
        HEADER_LENGTH: str(len(text)),
    }
