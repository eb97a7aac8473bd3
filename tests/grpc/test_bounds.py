"""What a gRPC client may cost: bytes before they are there, messages that never end, calls without a key."""

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from tests.http2 import Calls, message, until
from tests.linear import LABELS, SPEC, Linear, linear

from pthserve.access.bodies import BODIES, Bodies
from pthserve.access.guard import Guard
from pthserve.grpc import arrivals, health, interceptor, server
from pthserve.grpc.interceptor import SERVICE
from pthserve.grpc.server import Server, listen
from pthserve.inference_protocol.bounds import MAX_OUTPUTS, MAX_PARAMETERS, MAX_TEXT
from pthserve.protos import inference_pb2 as pb
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings

from .test_server import image, outputs

MAX_BODY = 2**20
SETTINGS = Settings(model="pets", grpc_port=0, max_body=MAX_BODY, max_inflight=8, deadline=20)
INFER = f"/{SERVICE.full_name}/ModelInfer"
METADATA = f"/{SERVICE.full_name}/ServerMetadata"
LIVE = f"/{SERVICE.full_name}/ServerLive"
CHECK, WATCH = f"/{health.NAME}/Check", f"/{health.NAME}/Watch"


class Serving:
    """A server, a client of it that behaves, and others that do not."""

    def __init__(self, port: int, loop: asyncio.Runner, bodies: Bodies, channel: grpc.aio.Channel) -> None:
        self.port = port
        self.bodies = bodies
        self._loop = loop
        self._channel = channel

    def ask(self, path: str, body: bytes = b"", **options: Any) -> bytes:
        """The response to `body`; raises grpc.aio.AioRpcError."""

        async def call() -> Any:
            callable_: Any = self._channel.unary_unary(path)
            return await callable_(body, timeout=30, **options)

        return bytes(self._loop.run(call()))

    def code(self, path: str, body: bytes = b"", **options: Any) -> grpc.StatusCode:
        """The code of the response to `body`."""
        try:
            self.ask(path, body, **options)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def beside(self, work: Callable[[], None]) -> None:
        """Do `work` in a thread, while the server answers."""
        self._loop.run(_awaited(asyncio.to_thread, work))


async def _awaited(function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    await function(*arguments)


@contextmanager
def serving(guard: Guard | None = None, **changes: Any) -> Iterator[Serving]:
    settings = SETTINGS.model_copy(update=changes)
    bodies = Bodies(settings.max_body, cpus=1)
    predictor = Predictor(settings)
    predictor.adopt(linear(Linear(SPEC, len(LABELS))))
    with asyncio.Runner() as loop:
        started: Server = loop.run(listen(settings))
        loop.run(started.start(predictor, None, guard, None, bodies))

        async def connect() -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(f"127.0.0.1:{started.port}")

        channel = loop.run(connect())
        try:
            yield Serving(started.port, loop, bodies, channel)
        finally:
            loop.run(channel.close())
            loop.run(started.stop(0))
            predictor.close()


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_message_has_the_answer_of_a_plain_one(compression: grpc.Compression) -> None:
    plain = image(id="a" * 500).SerializeToString()
    with serving() as service:
        answers = [service.ask(INFER, plain), service.ask(INFER, plain, compression=compression)]
        probabilities = [outputs(pb.ModelInferResponse.FromString(a))["probabilities"] for a in answers]
        assert probabilities[0] == pytest.approx(probabilities[1])
        request = health_pb2.HealthCheckRequest(service=SERVICE.full_name).SerializeToString()
        assert service.ask(CHECK, request * 5, compression=compression) == b"\x08\x01"


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(b"\x0a\x04pets", mtime=0)[:-1],
        gzip.compress(b"", mtime=0) + b"x",
        b"\x1f\x8bnone",
        b"\x78\x9cnone",
        b"\x1f\x8b",
    ],
)
def test_a_message_that_cannot_be_inflated_is_an_invalid_argument(body: bytes) -> None:
    with serving() as service:
        assert service.code(INFER, body) is grpc.StatusCode.INVALID_ARGUMENT
        assert service.code(CHECK, body) is grpc.StatusCode.INVALID_ARGUMENT


def test_inflated_bytes_are_counted_with_those_of_other_requests() -> None:
    bomb = zlib.compress(image(id="x" * (MAX_BODY - 10_000)).SerializeToString())
    with serving() as service:
        others = service.bodies.hold()
        others.grow(service.bodies.limit - 10 * len(bomb))
        assert service.code(INFER, bomb) is grpc.StatusCode.UNAVAILABLE
        others.close()
        assert service.code(INFER, bomb) is grpc.StatusCode.INVALID_ARGUMENT
        service.beside(lambda: until(lambda: service.bodies.held == 0))


def test_a_health_request_is_small_once_it_is_inflated() -> None:
    with serving() as service:
        for body in (gzip.compress(bytes(MAX_BODY)), bytes(MAX_TEXT + 1)):
            assert service.code(CHECK, body) in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            )


def long_texts() -> dict[str, pb.ModelInferRequest]:
    long = "x" * (MAX_TEXT + 1)
    named = image(id="1")
    named.inputs[0].name = long
    parameter = image(id="1")
    parameter.parameters[long].bool_param = True
    valued = image(id="1")
    valued.inputs[0].parameters["x"].string_param = long
    output = image(id="1")
    output.outputs.add(name=long)
    model = image(id="1")
    model.model_name = long
    return {
        "id": image(id=long),
        "model": model,
        "input": named,
        "parameter": parameter,
        "value": valued,
        "output": output,
    }


@pytest.mark.parametrize("case", long_texts())
def test_an_id_or_a_name_that_is_too_long_is_refused_and_not_repeated(case: str) -> None:
    with serving() as service, pytest.raises(grpc.aio.AioRpcError) as caught:
        service.ask(INFER, long_texts()[case].SerializeToString())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"more than {MAX_TEXT} bytes" in (caught.value.details() or "")
    assert "xxx" not in (caught.value.details() or "")


def test_an_id_of_the_longest_length_comes_back() -> None:
    with serving() as service:
        answer = service.ask(INFER, image(id="x" * MAX_TEXT).SerializeToString())
        assert pb.ModelInferResponse.FromString(answer).id == "x" * MAX_TEXT


def test_more_parameters_or_outputs_than_a_request_needs_are_an_invalid_argument() -> None:
    parameters, outputs_ = image(), image()
    for number in range(MAX_PARAMETERS + 1):
        parameters.parameters[str(number)].bool_param = True
    for _ in range(MAX_OUTPUTS + 1):
        outputs_.outputs.add(name="probabilities")
    with serving() as service:
        for request in (parameters, outputs_):
            assert service.code(INFER, request.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT


def test_messages_that_never_end_give_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "ARRIVING", 2)
    monkeypatch.setattr(arrivals, "PATIENCE", 0.2)
    with serving() as service:
        slow = Calls(service.port)
        calls = {slow.call(INFER, message(bytes(1000), size=MAX_BODY), end=False) for _ in range(6)}
        service.beside(lambda: slow.until(lambda: not any(map(slow.unsent, calls))))
        assert service.code(INFER, image().SerializeToString()) is grpc.StatusCode.OK
        service.beside(lambda: slow.until(lambda: len(calls & slow.ended) >= 4))
        slow.close()


def test_of_many_that_wait_for_their_turn_the_oldest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "ARRIVING", 1)
    with serving(max_inflight=3) as service:
        slow = Calls(service.port)
        streams = [slow.call(INFER, message(b"", size=9), end=False) for _ in range(5)]
        service.beside(lambda: slow.until(lambda: slow.ended))
        assert slow.ended == {streams[1]}  # the first arrives, three wait
        slow.close()


def test_a_stream_whose_message_nobody_has_asked_for_is_not_read_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the turns would bound nothing."""
    monkeypatch.setattr(interceptor, "ARRIVING", 1)
    with serving() as service:
        slow = Calls(service.port)
        first, *others = [
            slow.call(INFER, message(bytes(MAX_BODY // 2), size=MAX_BODY), end=False) for _ in range(4)
        ]
        service.beside(lambda: slow.until(lambda: not slow.unsent(first)))
        assert all(slow.unsent(stream) >= MAX_BODY // 2 - 2**17 for stream in others)
        slow.close()


def test_probes_are_answered_without_their_message() -> None:
    with serving() as service:
        silent = Calls(service.port)
        stream = silent.call(LIVE, message(b"", size=MAX_BODY), end=False)
        service.beside(lambda: silent.until(lambda: stream in silent.ended))
        silent.close()


def test_a_call_without_a_key_is_refused_before_its_message(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key")
    guard = Guard(SETTINGS.model_copy(update={"api_keys": tmp_path / "keys"}))
    with serving(guard) as service:
        silent = Calls(service.port)
        stream = silent.call(INFER, message(b"", size=MAX_BODY), end=False)
        service.beside(lambda: silent.until(lambda: stream in silent.ended))
        silent.close()


def test_those_who_watch_are_limited_and_keep_no_call_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "WATCHERS", 3)
    with serving(max_inflight=4) as service:  # 8 calls at once
        watching = Calls(service.port)
        calls = [watching.call(WATCH, message(b"")) for _ in range(20)]
        service.beside(lambda: watching.until(lambda: len(watching.ended) == 17))
        assert service.code(METADATA) is grpc.StatusCode.OK
        assert service.code(CHECK) is grpc.StatusCode.OK
        for stream in set(calls) - watching.ended:
            watching.reset(stream)

        def watches() -> bool:
            stream = watching.call(WATCH, message(b""))
            watching.until(lambda: stream in watching.answered | watching.ended)
            return stream in watching.answered

        service.beside(lambda: until(watches))
        watching.close()


@pytest.mark.parametrize("path", [LIVE, CHECK])
def test_probes_whose_responses_are_not_read_keep_no_call_out(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "PROBES", 3)
    with serving(max_inflight=4) as service:
        unread = Calls(service.port, window=0)
        for _ in range(20):
            unread.call(path, message(b""))
        service.beside(lambda: unread.until(lambda: len(unread.ended) == 17))
        assert service.code(METADATA) is grpc.StatusCode.OK
        assert service.code(path) is grpc.StatusCode.RESOURCE_EXHAUSTED
        unread.close()
        service.beside(lambda: until(lambda: service.bodies.held == 0))


def test_a_response_that_is_not_read_is_held_until_its_client_has_gone() -> None:
    with serving() as service:
        unread = Calls(service.port, window=0)
        unread.call(INFER, message(image().SerializeToString()))
        service.beside(lambda: unread.until(lambda: 0 < service.bodies.held < 1000))
        unread.close()
        service.beside(lambda: until(lambda: service.bodies.held == 0))


@pytest.mark.slow
def test_a_connection_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "AGE_SECONDS", 1)
    with serving(deadline=1) as service:
        unread = Calls(service.port, window=0)
        unread.call(METADATA, message(b""))
        service.beside(lambda: unread.until(lambda: unread.closed))
        unread.close()


def test_no_more_connections_are_taken_than_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    with serving() as service:
        open_ = [Calls(service.port) for _ in range(5)]

        def pump() -> bool:
            for connection in open_:
                connection.pump(0.01)
            return sum(connection.closed for connection in open_) == 2

        service.beside(lambda: until(pump))
        for connection in open_:
            connection.close()


def test_the_promise_has_these_numbers() -> None:
    text = " ".join((Path(__file__).parents[2] / "SECURITY.md").read_text().split())
    mib = Settings.model_fields["max_body"].default // 2**20
    arriving = interceptor.ARRIVING + health.ARRIVING
    for promise in (
        f"responses not yet read | {BODIES} x `max_body` | {BODIES * mib} |",
        f"{interceptor.ARRIVING} of calls, {health.ARRIVING} of health requests | "
        f"{arriving} x `max_body` | {arriving * mib} |",
        f"at most {MAX_TEXT:,} bytes, and a place at most {MAX_PARAMETERS} parameters",
        f"{interceptor.PROBES} at the same time, and {health.WATCHERS} that watch",
        f"{server.CONNECTIONS:,} connections, and closes each after {server.AGE_SECONDS // 60} minutes",
    ):
        assert promise in text
