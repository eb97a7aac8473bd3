"""What KServe's clients, as they come from their makers, are asked to do; in an environment of their own."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import apart
import httpx
import kserve
import kubernetes
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2
from numpy.typing import NDArray

Named = dict[str, NDArray[Any]]


def _run(work: Callable[[InferenceRESTClient], Awaitable[Any]]) -> Any:
    async def within() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            return await work(client)

    return asyncio.run(within())


def _request(
    datatype: str, elements: NDArray[Any], *, binary: bool, model: str = "pets", **options: Any
) -> InferRequest:
    tensor = InferInput("input", list(elements.shape), datatype)
    tensor.set_data_from_numpy(elements, binary_data=binary)
    return InferRequest(model, [tensor], parameters={"binary_data_output": binary}, **options)


def states(address: str) -> dict[str, bool]:
    async def work(client: InferenceRESTClient) -> dict[str, bool]:
        return {
            "live": await client.is_server_live(address),
            "ready": await client.is_server_ready(address),
            "model": await client.is_model_ready(address, "pets"),
            "another": await client.is_model_ready(address, "cats"),
        }

    return _run(work)


def infer(address: str, datatype: str, elements: NDArray[Any], *, binary: bool, **options: Any) -> Named:
    async def work(client: InferenceRESTClient) -> Named:
        asked = _request(datatype, elements, binary=binary)
        answered = await client.infer(address, asked, model_name="pets", **options)
        return {output.name: output.as_numpy() for output in answered.outputs}

    return _run(work)


def identified(address: str, datatype: str, elements: NDArray[Any]) -> tuple[str, str]:
    async def work(client: InferenceRESTClient) -> tuple[str, str]:
        asked = _request(datatype, elements, binary=True, request_id="r-1")
        answered = await client.infer(address, asked, model_name="pets")
        return answered.id, answered.model_name

    return _run(work)


def infer_at_once(address: str, datatype: str, elements: NDArray[Any], times: int) -> list[Named]:
    async def work(client: InferenceRESTClient) -> list[Named]:
        asked = [_request(datatype, elements, binary=True) for _ in range(times)]
        answers = await asyncio.gather(*(client.infer(address, each, model_name="pets") for each in asked))
        return [{output.name: output.as_numpy() for output in answer.outputs} for answer in answers]

    return _run(work)


def refused(
    address: str, datatype: str, elements: NDArray[Any], model: str, **options: Any
) -> tuple[int, str]:
    """Status and message of the error that an inference by `model` comes to."""

    async def work(client: InferenceRESTClient) -> tuple[int, str]:
        try:
            asked = _request(datatype, elements, binary=True)
            await client.infer(address, asked, model_name=model, **options)
        except httpx.HTTPStatusError as error:
            return error.response.status_code, str(error)
        raise AssertionError("it was not refused")

    return _run(work)


def infer_over_grpc(_: str, address: str, datatype: str, elements: NDArray[Any], *, binary: bool) -> Named:
    async def within() -> Named:
        async with InferenceGRPCClient(address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("pets")
            answered = await client.infer(_request(datatype, elements, binary=binary))
            return {output.name: output.as_numpy() for output in answered.outputs}

    return asyncio.run(within())


def described(_: str) -> bytes:
    """The protocol's descriptor as this client's makers have it, a FileDescriptorProto."""
    return grpc_predict_v2_pb2.DESCRIPTOR.serialized_pb


def unread(_: str, kind: str, document: dict[str, Any]) -> list[str]:
    """The fields of `document` that the client's model `kind` does not know, by their paths."""

    def fields(kind: str, value: Any, path: str) -> Iterator[str]:
        if listed := re.fullmatch(r"list\[(.+)\]", kind):
            for number, inner in enumerate(value):
                yield from fields(listed[1], inner, f"{path}[{number}]")
            return
        model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind, None)
        if model is None:
            return
        names = {name: model.openapi_types[field] for field, name in model.attribute_map.items()}
        for name, inner in value.items():
            if name in names:
                yield from fields(names[name], inner, f"{path}.{name}")
            else:
                yield f"{path}.{name}"

    return list(fields(kind, document, kind))


if __name__ == "__main__":
    apart.answer(globals())
