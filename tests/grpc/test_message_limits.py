"""Wire: a message is held to its bounds before it is parsed, and one that can be parsed is not held up."""

import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from pthserve.errors import MalformedRequest, TooLarge
from pthserve.grpc.message_limits import MAX_PARTS, check
from pthserve.protos import inference_pb2 as pb

KIND = pb.ModelInferRequest


def request() -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="pets", id="1", raw_input_contents=[bytes(100), b""])
    made.parameters["timeout"].int64_param = 2**40
    made.parameters["price"].double_param = 0.5
    tensor = made.inputs.add(name="x", datatype="FP32", shape=[1, -1, 2**40])
    tensor.contents.fp32_contents.extend([0.5] * 10)
    tensor.contents.uint_contents.extend([200] * 10)
    tensor.contents.bytes_contents.extend([b"", b"x" * 1000])
    made.outputs.add(name="y").parameters["classification"].int64_param = 3
    return made


def test_a_request_passes() -> None:
    check(KIND, request().SerializeToString())
    check(KIND, b"")
    check(pb.ServerLiveRequest, b"")


def test_numbers_may_be_as_many_as_they_like() -> None:
    made = request()
    made.inputs[0].contents.fp32_contents.extend([0.5] * 100 * MAX_PARTS)
    made.inputs[0].contents.uint_contents.extend([200] * 100 * MAX_PARTS)
    made.raw_input_contents.append(bytes(100 * MAX_PARTS))
    check(KIND, made.SerializeToString())


@pytest.mark.parametrize(
    "more",
    [
        {"inputs": [{}] * MAX_PARTS},
        {"inputs": [{"shape": [1] * MAX_PARTS}]},
        {"inputs": [{"contents": {"bytes_contents": [b""] * MAX_PARTS}}]},
        {"inputs": [{"contents": {"int64_contents": [1] * MAX_PARTS}}]},
        {"inputs": [{"contents": {"bool_contents": [True] * MAX_PARTS}}]},
        {"inputs": [{"parameters": {f"{index}": {} for index in range(MAX_PARTS)}}]},
        {"outputs": [{}] * MAX_PARTS},
        {"raw_input_contents": [b""] * MAX_PARTS},
    ],
    ids=lambda more: ".".join(map(str, more)),
)
def test_more_than_a_request_needs_is_too_large(more: dict[str, Any]) -> None:
    made = pb.ModelInferRequest(model_name="pets", **more)
    with pytest.raises(TooLarge):
        check(KIND, made.SerializeToString())


def test_fields_that_nobody_knows_are_counted_too() -> None:
    with pytest.raises(TooLarge):
        check(pb.ServerLiveRequest, b"\x08\x01" * (MAX_PARTS + 1))


@pytest.mark.parametrize(
    "message",
    [b"\x0a", b"\x0a\x05ab", b"\x08", b"\x08\x80", b"\x08" + b"\xff" * 11, b"\x0b\x0c", b"\x2a\x02\x0a\x7f"],
)
def test_what_is_cut_short_is_malformed(message: bytes) -> None:
    with pytest.raises(MalformedRequest):
        check(KIND, message)


@pytest.mark.parametrize("seed", range(3))
def test_what_protobuf_can_parse_passes(seed: int) -> None:
    source = random.Random(seed)
    whole = request().SerializeToString()
    parsed = 0
    for _ in range(2000):
        message = bytearray(whole)
        for _ in range(source.randrange(1, 3)):
            message[source.randrange(len(message))] = source.randrange(256)
        try:
            KIND.FromString(bytes(message))
        except DecodeError:
            continue
        parsed += 1
        try:
            check(KIND, bytes(message))
        except TooLarge:
            pass
        except MalformedRequest as error:
            assert "unknown wire type" in str(error), bytes(message)  # noqa: PT017
    assert parsed > 100
