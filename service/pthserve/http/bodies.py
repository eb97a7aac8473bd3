"""Bodies: an inference as REST carries it, a JSON object and behind it the tensors that are binary."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from pthserve.errors import MalformedRequest, TooLarge
from pthserve.http.skeleton import CUT, Skeleton
from pthserve.protocol.infer import Request, Response, everything, flag, refuse_shared_memory, timeout, wanted
from pthserve.protocol.numbers import Text
from pthserve.protocol.tensors import Content, Input

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header that says how long the JSON is, where binary tensors follow it; 0: the body is one image."""


class Part(BaseModel):
    """Whatever has parameters; those that nobody knows, like fields that nobody knows, are passed over."""

    model_config = ConfigDict(strict=True)

    parameters: dict[str, Any] | None = Field(
        None, description="values by name, as the protocol's extensions define them"
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
    """An output to be answered: probabilities, logits, label or class_index."""

    name: str


class InferRequest(Part):
    """What is to be inferred, and which outputs are asked for; all of them where none is named."""

    id: str | None = Field(None, description="comes back in the answer")
    inputs: list[InferInput] = Field(fail_fast=True)
    outputs: list[InferOutput] | None = Field(None, fail_fast=True)


AnyPart = TypeVar("AnyPart", bound=BaseModel)


def parsed(kind: type[AnyPart], text: bytes | memoryview) -> AnyPart:
    """The JSON object in `text`, none being an empty one.

    Raises MalformedRequest where it is no `kind`, and TooLarge before what is no request is parsed.
    """
    return _valid(kind, Skeleton(bytes(text)).text)


def _valid(kind: type[AnyPart], text: bytes) -> AnyPart:
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
        raise MalformedRequest(f"{HEADER_LENGTH} is not a number of bytes")
    length = int(header_length)
    if length > len(body):
        raise MalformedRequest(f"{HEADER_LENGTH} is {length}, and the body has {len(body)} bytes")
    return view[:length], view[length:]


def inflated(body: bytes, encoding: str, limit: int) -> bytes:
    """`body` as it was before its Content-Encoding; of `limit` bytes at most.

    Raises TooLarge, and MalformedRequest where it is not what `encoding` says.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise MalformedRequest("the body's Content-Encoding is none of gzip and deflate")
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, whichever its header says
    try:
        plain = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedRequest(f"the body cannot be inflated: {error}") from error
    if len(plain) > limit:
        raise TooLarge(f"the body is more than {limit} bytes once it is inflated")
    if not decoder.eof or decoder.unused_data:
        raise MalformedRequest(f"the body is not one whole {encoding} stream")
    return plain


def one_image(image: memoryview, model: str, version: str, *, binary: bool) -> Request:
    """The request that a body makes which is nothing but an image."""
    return Request(model, version, "", (Input("BYTES", (1,), [bytes(image)]),), everything(binary=binary))


def read(text: memoryview, data: memoryview, model: str, version: str) -> Request:
    """The request that the JSON `text` and the binary tensors in `data` make; raises as `parsed`."""
    skeleton = Skeleton(bytes(text))
    asked = _valid(InferRequest, skeleton.text)
    given = asked.parameters or {}
    binary = flag(given, "binary_data_output")
    return Request(
        model=model,
        version=version,
        id=asked.id or "",
        inputs=_inputs(asked, skeleton.numbers, data),
        wanted=tuple(wanted(put.name, put.parameters or {}, binary=binary) for put in asked.outputs or ())
        or everything(binary=binary),
        timeout=timeout(given),
    )


def _inputs(asked: InferRequest, numbers: Sequence[Text], data: memoryview) -> tuple[Input, ...]:
    inputs = []
    for put in asked.inputs:
        given = put.parameters or {}
        refuse_shared_memory(given)
        size = given.get("binary_data_size")
        if [size, put.data, put.cut].count(None) != 2:
            raise MalformedRequest("an input has either data, or the parameter binary_data_size")
        content: Content
        if put.data is not None:
            content = put.data
        elif put.cut is not None:
            content = numbers[put.cut]
        elif not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(data):
            raise MalformedRequest(
                f"binary_data_size is {size!r:.30}, and {len(data)} bytes of data are left"
            )
        else:
            content, data = data[:size], data[size:]
        inputs.append(Input(put.datatype, tuple(put.shape), content))
    if data:
        raise MalformedRequest(f"{len(data)} bytes follow the last input; is {HEADER_LENGTH} right?")
    return tuple(inputs)


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
