"""A model of any task as a user has it: packed, served, and asked over HTTP and gRPC."""

import base64
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from pydantic import BaseModel

from pthserve.loading.load import load
from pthserve.loading.pack import pack
from pthserve.protos import inference_pb2 as pb
from pthserve.settings import Settings
from pthserve.tasks.choice import TASKS

from ..http_service import Service, serving
from ..shared import PATIENCE
from .nets import CODE, IMAGES

SETTINGS = Settings(threads=1, tune_budget=0.0, allow_code=CODE, engine="openvino", precision="fp32")


@contextmanager
def packed_and_served(source: Path, into: Path, **settings: Any) -> Iterator[Service]:
    """A service of the pack that is made of `source`, over gRPC too; its golden images are checked."""
    pack(str(source), into, SETTINGS)
    model = load(str(into), SETTINGS)
    with serving(model, model=str(into), grpc_port=0, **settings) as service:
        yield service


def predicted(service: Service, **params: Any) -> list[dict[str, Any]]:
    """What /predict answers to each of the images; each answer is as its task describes it."""
    answers = []
    for data in IMAGES.values():
        reply = service.client.post("/predict", files={"image": data}, params=params)
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        task = answer.get("task", "classification")
        described: type[BaseModel] = TASKS[task].answer_model
        assert set(answer) == {*described.model_fields, "model", "timing"}
        described.model_validate(answer)
        answers.append(answer)
    return answers


def inferred(service: Service, images: Iterable[bytes], *outputs: dict[str, Any]) -> httpx.Response:
    """What /v2 responds to all images at once."""
    data = [base64.b64encode(image).decode() for image in images]
    request = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}],
        **({"outputs": list(outputs)} if outputs else {}),
    }
    return service.client.post("/v2/models/net/infer", json=request)


def tensors(service: Service, *outputs: dict[str, Any]) -> dict[str, Any]:
    """What /v2 answers to IMAGES, by the output's name; BYTES as lists of text."""
    reply = inferred(service, IMAGES.values(), *outputs)
    assert reply.status_code == 200, reply.text
    return {
        tensor["name"]: tensor["data"]
        if tensor["datatype"] == "BYTES"
        else np.array(tensor["data"]).reshape(tensor["shape"])
        for tensor in reply.json()["outputs"]
    }


def inferred_by_grpc(service: Service, images: Collection[bytes]) -> dict[str, Any]:
    """The output tensors of a ModelInfer of all images at once, by name."""
    request = pb.ModelInferRequest(model_name="net")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[len(images)])
    tensor.contents.bytes_contents.extend(images)
    with grpc.insecure_channel(f"127.0.0.1:{service.server.ports['grpc']}") as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return {one.name: one for one in call(request, timeout=PATIENCE).outputs}


def grpc_tensors(service: Service) -> dict[str, Any]:
    """As `tensors`, over gRPC."""
    fields = {"FP32": "fp32_contents", "INT64": "int64_contents", "BYTES": "bytes_contents"}
    found = {}
    for name, output in inferred_by_grpc(service, IMAGES.values()).items():
        values = list(getattr(output.contents, fields[output.datatype]))
        found[name] = (
            [value.decode() for value in values]
            if output.datatype == "BYTES"
            else np.array(values).reshape(output.shape)
        )
    return found


def same_over_both(service: Service) -> dict[str, Any]:
    """All outputs over REST, which are those of gRPC and those that the metadata has."""
    rest, rpc = tensors(service), grpc_tensors(service)
    metadata = service.client.get("/v2/models/net").json()["outputs"]
    assert [output["name"] for output in metadata] == list(rest) == list(rpc)
    for output in metadata:
        name = output["name"]
        if output["datatype"] == "BYTES":
            assert rest[name] == rpc[name]
        else:
            np.testing.assert_allclose(rest[name], rpc[name], rtol=1e-6)
            assert list(rest[name].shape[1:]) == output["shape"][1:]
    return rest
