"""What Triton's gRPC client, as it comes from its makers, is asked to do; in a process of its own.

One process has room for one `inference` package of protobuf's, and the tests have ours.
"""

import asyncio
import queue
from typing import Any

import apart
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, aio, service_pb2
from tritonclient.utils import InferenceServerException

Named = dict[str, NDArray[Any]]


def _put(datatype: str, elements: NDArray[Any]) -> list[Any]:
    tensor = InferInput("input", elements.shape, datatype)
    tensor.set_data_from_numpy(elements)
    return [tensor]


def _arrays(result: Any) -> Named:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def states(address: str) -> dict[str, bool]:
    with InferenceServerClient(address) as client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model": client.is_model_ready("pets"),
            "version": client.is_model_ready("pets", "3"),
        }


def metadata(address: str) -> dict[str, Any]:
    with InferenceServerClient(address) as client:
        return {
            "server": client.get_server_metadata(as_json=True),
            "model": client.get_model_metadata("pets", "3", as_json=True),
            "index": client.get_model_repository_index(as_json=True),
        }


def statistics(address: str) -> dict[str, Any]:
    with InferenceServerClient(address) as client:
        (stats,) = client.get_inference_statistics("pets", as_json=True)["model_stats"]
        return dict(stats)


def infer(address: str, datatype: str, elements: NDArray[Any], **options: Any) -> Named:
    with InferenceServerClient(address) as client:
        return _arrays(client.infer("pets", _put(datatype, elements), **options))


def identified(address: str, datatype: str, elements: NDArray[Any]) -> tuple[str, str]:
    with InferenceServerClient(address) as client:
        answer = client.infer("pets", _put(datatype, elements), request_id="r-1").get_response()
        return answer.id, answer.model_version


def classify(address: str, datatype: str, elements: NDArray[Any], count: int) -> list[list[bytes]]:
    wanted = [InferRequestedOutput("probabilities", class_count=count)]
    with InferenceServerClient(address) as client:
        result = client.infer("pets", _put(datatype, elements), outputs=wanted)
        rows: list[list[bytes]] = result.as_numpy("probabilities").tolist()
        return rows


def infer_at_once(address: str, datatype: str, elements: NDArray[Any], times: int) -> list[Named]:
    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    with InferenceServerClient(address) as client:
        for _ in range(times):
            client.async_infer(
                "pets", _put(datatype, elements), lambda result, error: answers.put((result, error))
            )
        found = []
        for _ in range(times):
            result, error = answers.get(timeout=60)
            if error is not None:
                raise error
            found.append(_arrays(result))
        return found


def infer_with_asyncio(address: str, datatype: str, elements: NDArray[Any]) -> Named:
    async def answered() -> Named:
        async with aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            return _arrays(await client.infer("pets", _put(datatype, elements)))

    return asyncio.run(answered())


def refused(address: str, call: str, *arguments: Any, **options: Any) -> tuple[str, str]:
    """Status and message of the error that `call` comes to; tensors are (datatype, elements)."""
    arguments = tuple(_put(*each) if isinstance(each, tuple) else each for each in arguments)
    with InferenceServerClient(address) as client:
        try:
            getattr(client, call)(*arguments, **options)
        except InferenceServerException as error:
            return str(error.status()), str(error.message())
    raise AssertionError(f"{call} was not refused")


def load(address: str) -> None:
    with InferenceServerClient(address) as client:
        client.load_model("pets")


def described(_: str) -> bytes:
    """The client's own descriptor of the protocol, a FileDescriptorProto."""
    return service_pb2.DESCRIPTOR.serialized_pb


if __name__ == "__main__":
    apart.answer(globals())
