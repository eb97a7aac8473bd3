"""Bodies: inference requests and responses over REST, a JSON object followed by the binary tensors."""

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
"""The header with the length of the JSON if binary tensors follow it; 0: the body is one image."""

MAX_OBJECT = 2**16
"""Maximum size in bytes of a JSON object that carries no tensors."""
_MAX_DEPTH = 8
"""Maximum nesting depth at which array elements are processed; no valid shape has as many dimensions."""


class Part(BaseModel):
    """A part of a request that can have parameters. Unknown parameters and fields are ignored."""

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
    shape: list[int] = Field(description="the first number is the number of images", fail_fast=True)
    data: list[Any] | None = Field(
        None,
        description="the elements, flat or nested, an image as base64; left out if binary data follows",
    )
    cut: Annotated[int | None, SkipJsonSchema()] = Field(None, validation_alias=CUT)


class InferOutput(Part):
    """A requested output; the model's metadata lists their names, such as probabilities or logits."""

    name: str


class InferRequest(Part):
    """The inputs, and the outputs to return; all outputs if none is named."""

    id: str | None = Field(None, description="repeated in the response")
    inputs: list[InferInput] = Field(fail_fast=True)
    outputs: list[InferOutput] | None = Field(None, max_length=MAX_OUTPUTS, fail_fast=True)


AnyPart = TypeVar("AnyPart", bound=BaseModel)


def parsed(kind: type[AnyPart], text: bytes | memoryview) -> AnyPart:
    """Return the JSON object in `text`; empty text counts as an empty object.

    Raises:
        MalformedRequest: It is not a `kind`.
        TooLarge: It has more than MAX_OBJECT bytes. It is then not parsed.
    """
    if len(text) > MAX_OBJECT:
        raise TooLarge(f"the JSON has more than {MAX_OBJECT} bytes")
    skeleton = Skeleton(bytes(text))
    valid = validated(kind, skeleton.text)
    skeleton.check()
    return valid


def validated(kind: type[AnyPart], text: bytes) -> AnyPart:
    """Return the JSON object in `text`, an empty one if that is empty; raises MalformedRequest."""
    try:
        return kind.model_validate(orjson.loads(text) if text else {})
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"the JSON cannot be parsed: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the JSON"
        raise MalformedRequest(f"{where[:100]}: {first['msg']}") from error


def split(body: bytes, header_length: str | None) -> tuple[memoryview, memoryview]:
    """Return the JSON and the binary data of `body`; raises MalformedRequest.

    Args:
        header_length: The value of the header HEADER_LENGTH; None if the request does not have it.
    """
    view = memoryview(body)
    if header_length is None:
        return view, view[:0]
    # str.isdecimal would accept the digits of other scripts, and int() spaces and underscores.
    if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 19:
        raise MalformedRequest(f"{HEADER_LENGTH} must be a number of bytes")
    length = int(header_length)
    if length > len(body):
        raise MalformedRequest(f"{HEADER_LENGTH} is {length}, but the body has only {len(body)} bytes")
    return view[:length], view[length:]


def compressed(encoding: str) -> bool:
    """Return whether a body with this Content-Encoding is compressed; raises MalformedRequest if unknown."""
    if encoding in ("", "identity"):
        return False
    if encoding not in ENCODINGS:
        raise MalformedRequest(f"Content-Encoding must be {' or '.join(ENCODINGS)}")
    return True


def one_image(image: memoryview, model: str, version: str, *, binary: bool) -> Request:
    """Return the request for a body that is a single encoded image."""
    return Request(model, version, "", (Input("BYTES", (1,), [bytes(image)]),), (), binary=binary)


def read(text: memoryview, data: memoryview, model: str, version: str) -> Request:
    """Return the request in the JSON `text` and the binary tensors `data`; raises as `parsed`."""
    whole = text.obj
    skeleton = Skeleton(whole if isinstance(whole, bytes) and len(whole) == len(text) else bytes(text))
    message = validated(InferRequest, skeleton.text)
    parameters = message.parameters or {}
    check_parameters(parameters)
    binary = flag(parameters, "binary_data_output")
    inputs = _inputs(message, skeleton, data)
    skeleton.check()
    return Request(
        model=model,
        version=version,
        id=message.id or "",
        inputs=inputs,
        wanted=tuple(wanted(one.name, one.parameters or {}, binary=binary) for one in message.outputs or ()),
        binary=binary,
        timeout=timeout(parameters),
    )


def _inputs(message: InferRequest, skeleton: Skeleton, data: memoryview) -> tuple[Input, ...]:
    inputs = []
    for tensor in message.inputs:
        parameters = tensor.parameters or {}
        check_parameters(parameters)
        size = parameters.get("binary_data_size")
        if [size, tensor.data, tensor.cut].count(None) != 2:
            raise MalformedRequest(
                "an input must have either `data` or the parameter `binary_data_size`, not both"
            )
        content: Content
        if tensor.data is not None:
            content = _restored(tensor.data, skeleton)
        elif tensor.cut is not None:
            content = skeleton.numbers[tensor.cut]
        elif not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(data):
            raise MalformedRequest(
                f"binary_data_size is {size!r:.30}, but only {len(data)} bytes of data remain"
            )
        else:
            content, data = data[:size], data[size:]
        inputs.append(Input(tensor.datatype, tuple(tensor.shape), content))
    if data:
        raise MalformedRequest(
            f"the body has {len(data)} bytes after the last input; check the header {HEADER_LENGTH}"
        )
    return tuple(inputs)


def _restored(elements: list[Any], skeleton: Skeleton, depth: int = _MAX_DEPTH) -> list[Any]:
    """Return `elements`, flat or nested, with the long strings that `skeleton` had cut out."""
    if not skeleton.strings or not depth:
        return elements
    return [
        _restored(element, skeleton, depth - 1)
        if isinstance(element, list)
        else skeleton.string(element)
        if isinstance(element, str)
        else element
        for element in elements
    ]


def written(answered: Response) -> tuple[bytes, Mapping[str, str]]:
    """Return the body and the headers of a response."""
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
