"""What Triton's gRPC client, as it comes from its makers, is asked to do; in a process of its own.

Each function is called there with the service's address. It gives back plain values, for the tests to judge.
"""

import queue
from typing import Any

from numpy.typing import NDArray

Named = dict[str, NDArray[Any]]


def _client(address: str) -> Any:
    from tritonclient.grpc import InferenceServerClient

    return InferenceServerClient(address)


def _put(datatype: str, elements: NDArray[Any]) -> list[Any]:
    from tritonclient.grpc import InferInput

    tensor = InferInput("input", elements.shape, datatype)
    tensor.set_data_from_numpy(elements)
    return [tensor]


def _arrays(result: Any) -> Named:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def states(address: str) -> dict[str, bool]:
    with _client(address) as client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model": client.is_model_ready("pets"),
            "version": client.is_model_ready("pets", "3"),
        }


def metadata(address: str) -> dict[str, Any]:
    with _client(address) as client:
        return {
            "server": client.get_server_metadata(as_json=True),
            "model": client.get_model_metadata("pets", "3", as_json=True),
            "index": client.get_model_repository_index(as_json=True),
        }


def statistics(address: str) -> dict[str, Any]:
    with _client(address) as client:
        (stats,) = client.get_inference_statistics("pets", as_json=True)["model_stats"]
        return dict(stats)


def infer(address: str, datatype: str, elements: NDArray[Any], **options: Any) -> Named:
    with _client(address) as client:
        return _arrays(client.infer("pets", _put(datatype, elements), **options))


def identified(address: str, datatype: str, elements: NDArray[Any]) -> tuple[str, str]:
    with _client(address) as client:
        answer = client.infer("pets", _put(datatype, elements), request_id="r-1").get_response()
        return answer.id, answer.model_version


def classify(address: str, datatype: str, elements: NDArray[Any], count: int) -> list[list[bytes]]:
    from tritonclient.grpc import InferRequestedOutput

    wanted = [InferRequestedOutput("probabilities", class_count=count)]
    with _client(address) as client:
        result = client.infer("pets", _put(datatype, elements), outputs=wanted)
        rows: list[list[bytes]] = result.as_numpy("probabilities").tolist()
        return rows


def infer_at_once(address: str, datatype: str, elements: NDArray[Any], times: int) -> list[Named]:
    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    with _client(address) as client:
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


def refused(address: str, call: str, *arguments: Any, **options: Any) -> tuple[str, str]:
    """Status and message of the error that `call` comes to; tensors are (datatype, elements)."""
    from tritonclient.utils import InferenceServerException

    arguments = tuple(_put(*each) if isinstance(each, tuple) else each for each in arguments)
    with _client(address) as client:
        try:
            getattr(client, call)(*arguments, **options)
        except InferenceServerException as error:
            return str(error.status()), str(error.message())
    raise AssertionError(f"{call} was not refused")


def load(address: str) -> None:
    with _client(address) as client:
        client.load_model("pets")


def fields() -> dict[str, dict[str, tuple[int, int, bool]]]:
    """Each message that the client knows: its fields' number and type, and whether they repeat."""
    from google.protobuf.descriptor import FieldDescriptor
    from tritonclient.grpc import service_pb2

    repeated = FieldDescriptor.LABEL_REPEATED
    found = {}
    pending = list(service_pb2.DESCRIPTOR.message_types_by_name.values())
    for message in pending:
        found[message.full_name] = {
            field.name: (field.number, field.type, field.label == repeated) for field in message.fields
        }
        pending.extend(message.nested_types)
    return found
