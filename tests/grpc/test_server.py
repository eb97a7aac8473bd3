"""The Open Inference Protocol over gRPC: the answers are REST's, and what cannot be answered has a status."""

import asyncio
import socket
import struct
from collections.abc import Iterator
from typing import Any, cast

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from tests.linear import LABELS, SPEC, Linear, linear, noise, png

from pthserve.access import bodies
from pthserve.errors import DeadlineExceeded, WeightsError
from pthserve.grpc.interceptor import SERVICE
from pthserve.grpc.server import Server, listen
from pthserve.images.preprocess import crop_pixels, normalise
from pthserve.metrics import REQUESTS
from pthserve.protos import inference_pb2 as pb
from pthserve.serving.prediction import Prediction
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings

from ..shared import until_async

SETTINGS = Settings(model="pets", grpc_port=0, max_body=2**20, max_pixels=10_000, max_inflight=8)
PIXELS = [noise(seed) for seed in range(3)]


class Rpc:
    """A server and a client of it, on one event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.Runner()
        self.engine = Linear(SPEC, len(LABELS))
        self.loads = 0
        self.load_error: Exception | None = None
        self.predictor = Predictor(SETTINGS)
        self.predictor.adopt(linear(self.engine))
        self.server: Server = self.loop.run(listen(SETTINGS))
        self.loop.run(self.server.start(self.predictor, self._load))
        self.channel: grpc.aio.Channel = self.loop.run(self._connect())

    async def _connect(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}")

    async def _load(self) -> None:
        self.loads += 1
        if self.load_error:
            raise self.load_error

    def close(self) -> None:
        self.engine.gate.set()
        self.loop.run(self.channel.close())
        self.loop.run(self.server.stop(1))
        self.loop.close()
        self.predictor.close()

    def call(self, name: str, request: Message | bytes = b"", **options: Any) -> Any:
        """The response to `request`, or the error with the metadata it came with."""
        body = request if isinstance(request, bytes) else request.SerializeToString()

        async def ask() -> bytes:
            send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
                f"/{SERVICE.full_name}/{name}"
            )
            return await send(body, **options)

        method = SERVICE.methods_by_name[name]
        return getattr(pb, method.output_type.name).FromString(self.loop.run(ask()))

    def refused(self, name: str, request: Message | bytes = b"", **options: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            self.call(name, request, **options)
        return caught.value

    def predictions(self) -> list[Prediction]:
        async def ask() -> list[Prediction]:
            return [await self.predictor.predict(png(pixels)) for pixels in PIXELS]

        return self.loop.run(ask())


@pytest.fixture(scope="module")
def rpc() -> Iterator[Rpc]:
    rpc = Rpc()
    yield rpc
    rpc.close()


@pytest.fixture(scope="module")
def expected(rpc: Rpc) -> list[Prediction]:
    return rpc.predictions()


def infer(
    datatype: str, shape: tuple[int, ...], content: list[Any] | bytes, **fields: Any
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="pets", **fields)
    tensor = request.inputs.add(name="input", datatype=datatype, shape=shape)
    if isinstance(content, bytes):
        request.raw_input_contents.append(content)
    else:
        name = {"FP32": "fp32_contents", "UINT8": "uint_contents"}.get(datatype, "bytes_contents")
        getattr(tensor.contents, name).extend(content)
    return request


def image(**fields: Any) -> pb.ModelInferRequest:
    return infer("BYTES", (1,), [png(PIXELS[0])], **fields)


def tensors() -> NDArray[np.float32]:
    return normalise(np.stack([crop_pixels(pixels, SPEC) for pixels in PIXELS]), SPEC)


def forms() -> dict[str, pb.ModelInferRequest]:
    files = [png(pixels) for pixels in PIXELS]
    prefixed = b"".join(struct.pack("<I", len(file)) + file for file in files)
    pixels = np.stack(PIXELS)
    return {
        "images": infer("BYTES", (3,), files),
        "images, raw": infer("BYTES", (3,), prefixed),
        "pixels": infer("UINT8", pixels.shape, pixels.ravel().tolist()),
        "pixels, raw": infer("UINT8", pixels.shape, pixels.tobytes()),
        "tensors": infer("FP32", (3, *SPEC.tensor_shape), tensors().ravel().tolist()),
        "tensors, raw": infer("FP32", (3, *SPEC.tensor_shape), tensors().tobytes()),
    }


def outputs(response: pb.ModelInferResponse) -> dict[str, Any]:
    found = {}
    raw = list(response.raw_output_contents)
    assert len(raw) in (0, len(response.outputs))
    for index, output in enumerate(response.outputs):
        contents: Any
        if raw:
            assert not output.HasField("contents")
            if output.datatype == "BYTES":
                contents, blob = [], raw[index]
                while blob:
                    (size,) = struct.unpack_from("<I", blob)
                    contents.append(blob[4 : 4 + size])
                    blob = blob[4 + size :]
            else:
                contents = np.frombuffer(raw[index], {"FP32": "<f4", "INT64": "<i8"}[output.datatype])
        else:
            name = {"FP32": "fp32_contents", "INT64": "int64_contents", "BYTES": "bytes_contents"}
            contents = getattr(output.contents, name[output.datatype])
        kind = {"FP32": np.float32, "INT64": np.int64, "BYTES": object}[output.datatype]
        found[output.name] = np.array(contents, kind).reshape(output.shape)
    return found


@pytest.mark.parametrize("form", forms())
def test_every_form_has_the_predictors_answer(rpc: Rpc, expected: list[Prediction], form: str) -> None:
    response = rpc.call("ModelInfer", forms()[form])
    assert (response.model_name, response.model_version) == ("pets", "3")
    assert bool(response.raw_output_contents) is form.endswith("raw")
    found = outputs(response)
    for index, prediction in enumerate(expected):
        np.testing.assert_array_equal(found["logits"][index], prediction.answer.logits)
        np.testing.assert_array_equal(found["probabilities"][index], prediction.answer.probabilities)
        assert found["label"][index] == LABELS[prediction.answer.class_index].encode()
        assert found["class_index"][index] == prediction.answer.class_index


def test_the_client_may_choose_how_outputs_come(rpc: Rpc) -> None:
    request = image()
    request.parameters["binary_data_output"].bool_param = True
    assert len(rpc.call("ModelInfer", request).raw_output_contents) == 4


def test_the_id_comes_back(rpc: Rpc) -> None:
    assert rpc.call("ModelInfer", image(id="forty-two")).id == "forty-two"
    assert rpc.call("ModelInfer", image(model_version="3")).id == ""


def test_a_classification_names_the_best(rpc: Rpc, expected: list[Prediction]) -> None:
    request = image()
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 2
    (output,) = rpc.call("ModelInfer", request).outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [1, 2])
    probabilities = expected[0].answer.probabilities
    assert [text.decode() for text in output.contents.bytes_contents] == [
        f"{probabilities[index]:f}:{index}:{LABELS[index]}" for index in expected[0].answer.top(2)
    ]


def test_server_and_model_say_what_they_are(rpc: Rpc) -> None:
    assert rpc.call("ServerLive").live
    assert rpc.call("ServerReady").ready
    assert rpc.call("ModelReady", pb.ModelReadyRequest(name="pets", version="3")).ready
    assert rpc.call("ServerMetadata").name == "pthserve"
    metadata = rpc.call("ModelMetadata", pb.ModelMetadataRequest(name="pets"))
    assert list(metadata.versions) == ["3"]
    assert {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs} == {
        "image": ("BYTES", [-1]),
        "pixels": ("UINT8", [-1, -1, -1, 3]),
        "tensor": ("FP32", [-1, 3, 32, 32]),
    }
    assert {tensor.name: list(tensor.shape) for tensor in metadata.outputs}["probabilities"] == [-1, 5]


def test_statistics_count_what_was_done(rpc: Rpc) -> None:
    (before,) = rpc.call("ModelStatistics").model_stats
    rpc.call("ModelInfer", forms()["pixels, raw"])
    (after,) = rpc.call("ModelStatistics", pb.ModelStatisticsRequest(name="pets")).model_stats
    assert (after.name, after.version) == ("pets", "3")
    assert after.inference_count - before.inference_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert sum(batch.compute_infer.count for batch in after.batch_stats) == after.execution_count


def test_the_repository_is_the_one_model(rpc: Rpc) -> None:
    (listed,) = rpc.call("RepositoryIndex").models
    assert (listed.name, listed.version, listed.state, listed.reason) == ("pets", "3", "READY", "")
    before = rpc.loads
    rpc.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="pets"))
    assert rpc.loads == before + 1
    refused = rpc.refused("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="pets"))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_load_that_fails_says_why(rpc: Rpc) -> None:
    rpc.load_error = WeightsError("the file is cut short")
    try:
        refused = rpc.refused("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="pets"))
    finally:
        rpc.load_error = None
    assert (refused.code(), refused.details()) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "the file is cut short",
    )


def test_while_it_is_not_ready_the_service_says_so(rpc: Rpc) -> None:
    rpc.predictor.unready = "the service is shutting down"
    try:
        assert not rpc.call("ServerReady").ready
        assert not rpc.call("ModelReady", pb.ModelReadyRequest(name="pets")).ready
        assert rpc.call("RepositoryIndex").models[0].state == "UNAVAILABLE"
    finally:
        rpc.predictor.unready = None


# --- what cannot be answered


def wrong(**changes: Any) -> pb.ModelInferRequest:
    request = image()
    for name, value in changes.items():
        setattr(request.inputs[0], name, value) if name == "datatype" else request.inputs[
            0
        ].shape.__setitem__(slice(None), value)
    return request


def both() -> pb.ModelInferRequest:
    request = image()
    request.raw_input_contents.append(b"raw")
    return request


def twice() -> pb.ModelInferRequest:
    request = image()
    request.inputs.append(request.inputs[0])
    return request


def unknown_output() -> pb.ModelInferRequest:
    request = image()
    request.outputs.add(name="fc")
    return request


def shared_memory() -> pb.ModelInferRequest:
    request = image()
    request.inputs[0].parameters["shared_memory_region"].string_param = "x"
    return request


MALFORMED: dict[str, Message | bytes] = {
    "another message": b"\xff\xff",
    "cut short": image().SerializeToString()[:-1],
    "no input": pb.ModelInferRequest(model_name="pets"),
    "raw and typed": both(),
    "two inputs": twice(),
    "another datatype": wrong(datatype="FP16"),
    "shape that lies": wrong(shape=[2]),
    "negative shape": wrong(shape=[-1]),
    "shape of thousands": wrong(shape=[1] * 1000),
    "typed elsewhere": infer("FP32", (1, 3, 32, 32), []),
    "pixel above 255": infer("UINT8", (1, 1, 1, 3), [1, 2, 256]),
    "raw too short": infer("FP32", (1, *SPEC.tensor_shape), bytes(4)),
    "raw too long": infer("UINT8", (1, 1, 1, 3), bytes(4)),
    "length that lies": infer("BYTES", (1,), b"\xff\xff\xff\xffshort"),
    "unknown output": unknown_output(),
    "shared memory": shared_memory(),
    "no image": infer("BYTES", (1,), [b"no image"]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_cannot_be_read_is_an_invalid_argument(rpc: Rpc, case: str) -> None:
    refused = rpc.refused("ModelInfer", MALFORMED[case])
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert 10 < len(refused.details() or "") < 300


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("ModelInfer", infer("BYTES", (1,), [b"x"], model_version="9")),
        ("ModelInfer", pb.ModelInferRequest(model_name="cats")),
        ("ModelReady", pb.ModelReadyRequest(name="cats")),
        ("ModelMetadata", pb.ModelMetadataRequest(name="pets", version="9")),
        ("ModelStatistics", pb.ModelStatisticsRequest(name="cats")),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="cats")),
    ],
)
def test_a_model_that_is_not_there_is_not_found(rpc: Rpc, name: str, request_: Message) -> None:
    assert rpc.refused(name, request_).code() is grpc.StatusCode.NOT_FOUND


def test_a_procedure_that_is_not_there_is_unimplemented(rpc: Rpc) -> None:
    async def ask() -> None:
        send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = rpc.channel.unary_unary(
            f"/{SERVICE.full_name}/ModelStreamInfer"
        )
        await send(b"")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        rpc.loop.run(ask())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "request_",
    [
        infer("BYTES", (9,), [b"x"] * 9),
        infer("BYTES", (2**62,), []),
        infer("UINT8", (1, 2**40, 2**40, 3), []),
        infer("BYTES", (1,), [bytes(2**20)]),
        infer("BYTES", (1,), [b""] * 100_000),
        infer("FP32", (1,) * 100_000, []),
    ],
    ids=["images", "absurdly many images", "absurdly many pixels", "message", "strings", "dimensions"],
)
def test_what_is_over_a_limit_exhausts_a_resource(rpc: Rpc, request_: pb.ModelInferRequest) -> None:
    assert rpc.refused("ModelInfer", request_).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_that_is_large_once_inflated_exhausts_a_resource(rpc: Rpc) -> None:
    bomb = infer("BYTES", (1,), [bytes(30 * 2**20)])
    refused = rpc.refused("ModelInfer", bomb, compression=grpc.Compression.Gzip)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_clients_deadline_counts(rpc: Rpc, monkeypatch: pytest.MonkeyPatch) -> None:
    granted: list[float | None] = []

    async def predict_many(_: object, *, deadline: float | None = None) -> None:
        granted.append(deadline)
        raise DeadlineExceeded("too late")

    monkeypatch.setattr(rpc.predictor, "predict_many", predict_many)
    assert rpc.refused("ModelInfer", image(), timeout=7).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert rpc.refused("ModelInfer", image()).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    request = image()
    request.parameters["timeout"].int64_param = 2_000_000
    rpc.refused("ModelInfer", request, timeout=7)
    with_deadline, without, with_timeout = granted
    assert with_deadline is not None
    assert 1 < with_deadline < 7.5
    assert without is not None
    assert 7.5 < without <= SETTINGS.deadline
    assert with_timeout == 2


def test_an_answer_that_is_late_is_a_deadline_and_gives_its_permit_back(rpc: Rpc) -> None:
    rpc.engine.gate.clear()
    try:
        request = image()
        request.parameters["timeout"].int64_param = 100_000
        assert rpc.refused("ModelInfer", request).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert rpc.predictor.admission.inflight == 0
        # The client's own clock ends this one; the service hears of it, and lets go.
        assert rpc.refused("ModelInfer", image(), timeout=0.1).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        rpc.loop.run(until_async(lambda: rpc.predictor.admission.inflight == 0))
    finally:
        rpc.engine.gate.set()


def test_whom_there_is_no_room_for_is_told_when_to_come_again(rpc: Rpc) -> None:
    rpc.engine.gate.clear()

    async def crowd() -> grpc.aio.AioRpcError:
        path = f"/{SERVICE.full_name}/ModelInfer"
        body = forms()["pixels, raw"].SerializeToString()
        send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = rpc.channel.unary_unary(path)
        calls = [send(body) for _ in range(4)]  # 3 images each: 8 are let in
        try:
            done, _ = await asyncio.wait(
                [asyncio.ensure_future(_ended(call)) for call in calls],
                timeout=30,
                return_when=asyncio.FIRST_COMPLETED,
            )
            error = next(iter(done)).result()
        finally:
            rpc.engine.gate.set()
            for call in calls:
                call.cancel()
        return cast("grpc.aio.AioRpcError", error)

    error = rpc.loop.run(crowd())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    trailer = dict(error.trailing_metadata() or ())
    assert int(trailer["grpc-retry-pushback-ms"]) >= 0
    rpc.loop.run(until_async(lambda: rpc.predictor.admission.inflight == 0))


async def _ended(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error
    except asyncio.CancelledError:
        return None


def test_messages_that_fill_the_memory_are_refused(rpc: Rpc, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> grpc.aio.AioRpcError:
        settings = SETTINGS.model_copy(update={"max_body": 2**20})
        monkeypatch.setattr(bodies, "BODIES", 0)
        server = await listen(settings)
        await server.start(rpc.predictor)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                    f"/{SERVICE.full_name}/ModelInfer"
                )
                return cast("grpc.aio.AioRpcError", await _ended(call(image().SerializeToString())))
        finally:
            await server.stop(0)

    error = rpc.loop.run(ask())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "no memory left" in (error.details() or "")


def test_a_client_that_sends_no_message_is_not_waited_for_long(rpc: Rpc) -> None:
    async def ask(finish: bool) -> Any:
        send: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = rpc.channel.stream_unary(
            f"/{SERVICE.full_name}/ModelInfer"
        )
        call = send(timeout=None if finish else 0.2)
        if finish:
            await call.done_writing()
        return await _ended(call)

    assert rpc.loop.run(ask(True)).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert rpc.loop.run(ask(False)).code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_mistake_of_ours_is_internal_and_says_nothing_of_itself(
    rpc: Rpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def predict_many(*_: object, **__: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(rpc.predictor, "predict_many", predict_many)
    refused = rpc.refused("ModelInfer", image())
    assert refused.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (refused.details() or "")


# --- what is around the calls


def test_calls_are_counted_with_the_codes_of_http(rpc: Rpc) -> None:
    route = f"/{SERVICE.full_name}/ModelInfer"

    def counted(code: int) -> float:
        return REQUESTS.labels(route, code)._value.get()

    before = {code: counted(code) for code in (200, 400, 404)}
    rpc.call("ModelInfer", image())
    rpc.refused("ModelInfer", MALFORMED["no input"])
    rpc.refused("ModelInfer", pb.ModelInferRequest(model_name="cats"))
    assert {code: counted(code) - before[code] for code in before} == {200: 1, 400: 1, 404: 1}


def test_the_request_id_comes_back(rpc: Rpc) -> None:
    refused = rpc.refused("ModelInfer", metadata=(("x-request-id", "abc-1"),))
    assert dict(refused.trailing_metadata() or ())["x-request-id"] == "abc-1"


def test_an_answer_names_the_model_that_gave_it(rpc: Rpc) -> None:
    async def trailer(name: str, request: Message) -> dict[str, Any]:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = rpc.channel.unary_unary(
            f"/{SERVICE.full_name}/{name}"
        )
        call = method(request.SerializeToString())
        await call
        return dict(await call.trailing_metadata() or ())

    answered = rpc.loop.run(trailer("ModelInfer", image()))
    assert answered["x-model-digest"] == rpc.predictor.model().digest
    assert answered["x-request-id"]
    assert "x-model-digest" not in rpc.loop.run(trailer("ServerLive", pb.ServerLiveRequest()))


def test_health_follows_readiness(rpc: Rpc) -> None:
    states = health_pb2.HealthCheckResponse

    async def state(name: str) -> int:
        stub = health_pb2_grpc.HealthStub(rpc.channel)
        return int((await stub.Check(health_pb2.HealthCheckRequest(service=name))).status)

    async def until(wanted: int) -> None:
        async with asyncio.timeout(30):
            for name in ("", SERVICE.full_name):
                while await state(name) != wanted:
                    await asyncio.sleep(0.05)

    rpc.loop.run(until(states.SERVING))
    rpc.predictor.unready = "the service is shutting down"
    try:
        rpc.loop.run(until(states.NOT_SERVING))
    finally:
        rpc.predictor.unready = None
    rpc.loop.run(until(states.SERVING))


def test_a_port_that_is_taken_is_an_error(rpc: Rpc) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = SETTINGS.model_copy(update={"grpc_port": taken.getsockname()[1]})
        with pytest.raises(OSError, match="in use"):
            rpc.loop.run(listen(settings))


def test_a_service_that_nobody_knows_has_no_health(rpc: Rpc) -> None:
    async def ask() -> tuple[grpc.StatusCode, int]:
        stub = health_pb2_grpc.HealthStub(rpc.channel)
        unknown = health_pb2.HealthCheckRequest(service="cats")
        watch = stub.Watch(unknown)
        watched = (await watch.read()).status
        watch.cancel()
        return (await _ended(stub.Check(unknown))).code(), watched

    unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert rpc.loop.run(ask()) == (grpc.StatusCode.NOT_FOUND, unknown)


def test_those_who_watch_are_told_of_each_change_and_keep_no_server_from_stopping(rpc: Rpc) -> None:
    states = health_pb2.HealthCheckResponse

    async def watch() -> list[int]:
        server = await listen(SETTINGS)
        await server.start(rpc.predictor)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            left, watched = (stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2))
            seen = [(await watched.read()).status]
            await left.read()
            left.cancel()
            rpc.predictor.unready = "the service is shutting down"
            seen.append((await watched.read()).status)
            async with asyncio.timeout(30):
                await server.stop(3600)
            assert await watched.read() is grpc.aio.EOF
            return seen

    try:
        assert rpc.loop.run(watch()) == [states.SERVING, states.NOT_SERVING]
    finally:
        rpc.predictor.unready = None
