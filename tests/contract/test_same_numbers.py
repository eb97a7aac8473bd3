"""However one image is sent, the answer is the same, to the last bit.

But for a tensor's: its pixels were normalised by the client, which rounds otherwise than the engine does.
"""

import base64
import struct
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from tests.contract.conftest import FILES, PIXELS, Served, tensors

from pthserve.protos import inference_pb2 as pb

pytestmark = pytest.mark.slow

ARRAYS: dict[str, NDArray[Any]] = {"UINT8": PIXELS[0][None], "FP32": tensors()[:1]}
Ask = Callable[[Served, str], NDArray[np.float32]]


def rest(served: Served, put: dict[str, Any], blob: bytes = b"") -> NDArray[np.float32]:
    head = orjson.dumps({"inputs": [{"name": "x", **put}]}, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {"Inference-Header-Content-Length": str(len(head))} if blob else {}
    return posted(served, head + blob, headers)


def posted(served: Served, body: bytes, headers: dict[str, str]) -> NDArray[np.float32]:
    answer = httpx.post(f"{served.http}/v2/models/pets/infer", content=body, headers=headers, timeout=60)
    (found,) = (output for output in answer.json()["outputs"] if output["name"] == "probabilities")
    return np.array(found["data"], np.float32)


def called(served: Served, put: dict[str, Any], raw: bytes | None = None) -> NDArray[np.float32]:
    request = pb.ModelInferRequest(model_name="pets", outputs=[{"name": "probabilities"}])
    request.inputs.add(name="x", **put)
    if raw is not None:
        request.raw_input_contents.append(raw)
    with grpc.insecure_channel(served.grpc) as channel:
        infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer"
        )
        answer = pb.ModelInferResponse.FromString(infer(request.SerializeToString(), timeout=60))
    if raw is not None:
        return np.frombuffer(answer.raw_output_contents[0], np.float32)
    return np.array(answer.outputs[0].contents.fp32_contents, np.float32)


def described(datatype: str) -> dict[str, Any]:
    return {"datatype": datatype, "shape": list(ARRAYS[datatype].shape) if datatype in ARRAYS else [1]}


def elements(datatype: str) -> bytes:
    if datatype == "BYTES":
        return struct.pack("<I", len(FILES[0])) + FILES[0]
    return ARRAYS[datatype].tobytes()


def as_json(served: Served, datatype: str) -> NDArray[np.float32]:
    data: Any = [base64.b64encode(FILES[0]).decode()] if datatype == "BYTES" else ARRAYS[datatype].ravel()
    return rest(served, {**described(datatype), "data": data})


def as_nested_json(served: Served, datatype: str) -> NDArray[np.float32]:
    return rest(served, {**described(datatype), "data": ARRAYS[datatype]})


def as_binary_data(served: Served, datatype: str) -> NDArray[np.float32]:
    blob = elements(datatype)
    return rest(served, {**described(datatype), "parameters": {"binary_data_size": len(blob)}}, blob)


def as_the_body(served: Served, _: str) -> NDArray[np.float32]:
    return posted(served, FILES[0], {"Inference-Header-Content-Length": "0"})


def over_grpc_typed(served: Served, datatype: str) -> NDArray[np.float32]:
    field = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}[datatype]
    values: Any = [FILES[0]] if datatype == "BYTES" else ARRAYS[datatype].ravel().tolist()
    return called(served, {**described(datatype), "contents": {field: values}})


def over_grpc_raw(served: Served, datatype: str) -> NDArray[np.float32]:
    return called(served, described(datatype), elements(datatype))


@pytest.mark.parametrize(
    ("ask", "datatype"),
    [
        *((ask, datatype) for ask in (as_json, as_binary_data) for datatype in ("BYTES", "UINT8", "FP32")),
        *((as_nested_json, datatype) for datatype in ("UINT8", "FP32")),
        (as_the_body, "BYTES"),
        *(
            (ask, datatype)
            for ask in (over_grpc_typed, over_grpc_raw)
            for datatype in ("BYTES", "UINT8", "FP32")
        ),
    ],
)
def test_the_answer_is_predicts(served: Served, expected: dict[str, Any], ask: Ask, datatype: str) -> None:
    tolerance = 1e-6 if datatype == "FP32" else 0
    found = ask(served, datatype).ravel()
    np.testing.assert_allclose(found, expected["probabilities"][0], rtol=0, atol=tolerance)
