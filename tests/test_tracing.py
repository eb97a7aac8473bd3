"""Traces: whose they are part of, what a real collector hears of them, and that nobody waits for it."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from pthserve.protos import inference_pb2 as pb
from pthserve.tracing import Caller, caller

from .http_service import Service, serving
from .serving.squares import Squares, png, squares
from .shared import until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = f"00-{TRACE}-{PARENT}-01"
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Collector:
    """An OTLP receiver on a socket of its own.

    status: what it answers; held: while this is clear, it takes what comes and says nothing.
    """

    def __init__(self) -> None:
        collector = self
        self.status = 200
        self.held = threading.Event()
        self.held.set()
        self.asked = 0
        self.spans: list[Span] = []
        self.resource: dict[str, str] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.asked += 1
                collector.held.wait(60)
                if collector.status == 200:
                    assert self.path == "/v1/traces"
                    collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for group in request.resource_spans:
            self.resource = attributes(group.resource)
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def close(self) -> None:
        self.held.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def trace(self, size: int) -> dict[str, Span]:
        """The spans by name, once there are `size` of them."""
        until(lambda: len(self.spans) >= size, f"{size} spans")
        assert len(self.spans) == size
        return {span.name: span for span in self.spans}


def attributes(of: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in of.attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    started = Collector()
    yield started
    started.close()


def predict(service: Service, **headers: str) -> int:
    return service.client.post("/predict", files={"image": png()}, headers=headers).status_code


@pytest.mark.parametrize(
    ("sent", "sampled"),
    [
        (SENT, True),
        (f"00-{TRACE}-{PARENT}-00", False),
        (f"00-{TRACE}-{PARENT}-ff", True),
        (f"cc-{TRACE}-{PARENT}-01", True),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", True),
    ],
)
def test_a_traceparent_names_the_caller(sent: str, sampled: bool) -> None:
    headers = [(b"traceparent", sent.encode()), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    assert caller(headers) == Caller(int(TRACE, 16), int(PARENT, 16), sampled, "a=1,b=2")


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [SENT, SENT],
        [f"ff-{TRACE}-{PARENT}-01"],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE.upper()}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-01-more"],
        [f"00-{TRACE}-{PARENT}-1"],
        [f"cc-{TRACE}-{PARENT}-01more"],
        ["é"],
        [""],
    ],
    ids=str,
)
def test_a_traceparent_that_is_none_is_passed_over(sent: list[str]) -> None:
    assert caller([(b"traceparent", value.encode()) for value in sent]) is None


@pytest.mark.slow
def test_a_request_is_a_span_of_its_caller_with_one_below_it_a_stage(collector: Collector) -> None:
    with serving(squares(Squares(seconds=0.01)), otlp_endpoint=collector.endpoint) as service:
        assert predict(service, traceparent=SENT, tracestate="a=1") == 200
        spans = collector.trace(4)

    request = spans.pop("POST /predict")
    assert request.kind == Span.SPAN_KIND_SERVER
    assert (request.trace_id.hex(), request.parent_span_id.hex(), request.trace_state) == (
        TRACE,
        PARENT,
        "a=1",
    )
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
    }
    decode, queue, infer = (spans.pop(name) for name in ("decode", "queue", "infer"))
    assert not spans
    for stage in (decode, queue, infer):
        assert (stage.trace_id, stage.parent_span_id) == (request.trace_id, request.span_id)
    moments = [
        request.start_time_unix_nano,
        decode.start_time_unix_nano,
        decode.end_time_unix_nano,
        queue.end_time_unix_nano,
        infer.end_time_unix_nano,
        request.end_time_unix_nano,
    ]
    assert moments == sorted(moments)
    assert queue.start_time_unix_nano == pytest.approx(decode.end_time_unix_nano, abs=1000)
    assert infer.start_time_unix_nano == pytest.approx(queue.end_time_unix_nano, abs=1000)
    assert infer.end_time_unix_nano - infer.start_time_unix_nano >= 10_000_000
    assert attributes(infer) == {"pthserve.batch": 1, "pthserve.digest": "00" * 32}


def test_the_images_of_a_request_share_its_stages(collector: Collector) -> None:
    image = {"name": "image", "datatype": "UINT8", "shape": [2, 4, 4, 3], "data": [200] * 96}
    with serving(otlp_endpoint=collector.endpoint) as service:
        answer = service.client.post("/v2/models/squares/infer", json={"inputs": [image]})
        assert answer.status_code == 200, answer.text
        spans = collector.trace(4)
    assert attributes(spans["decode"]) == {"pthserve.images": 2}
    assert spans["POST /v2/models/{model}/infer"].parent_span_id == b""


def test_a_call_over_grpc_is_a_span_of_its_caller(collector: Collector) -> None:
    request = pb.ModelInferRequest(model_name="squares")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 4, 4, 3]).contents.uint_contents.extend(
        [200] * 48
    )

    async def ask(port: int, name: str) -> None:
        request.model_name = name
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
            await send(request.SerializeToString(), metadata=(("traceparent", SENT),), timeout=30)

    with serving(otlp_endpoint=collector.endpoint, grpc_port=0) as service:
        asyncio.run(ask(service.server.ports["grpc"], "squares"))
        spans = collector.trace(4)
        with pytest.raises(grpc.aio.AioRpcError):
            asyncio.run(ask(service.server.ports["grpc"], "circles"))
        until(lambda: len(collector.spans) == 5, "the span of the refusal")

    call = spans[INFER[1:]]
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(call) == {
        "rpc.system.name": "grpc",
        "rpc.method": INFER[1:],
        "rpc.response.status_code": "OK",
    }
    assert {spans[name].parent_span_id for name in ("decode", "queue", "infer")} == {call.span_id}
    assert attributes(collector.spans[4])["rpc.response.status_code"] == "NOT_FOUND"


def test_only_what_the_service_is_at_fault_for_is_an_error(collector: Collector) -> None:
    broken = threading.Event()

    def fail(_: object) -> None:
        assert not broken.is_set(), "it broke"

    with serving(squares(Squares(hook=fail)), otlp_endpoint=collector.endpoint) as service:
        broken.set()
        assert predict(service) == 500
        assert service.client.get("/nowhere").status_code == 404
        spans = collector.trace(2)
    failed, unmatched = spans["POST /predict"], spans["GET unmatched"]
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert attributes(failed)["error.type"] == "500"
    assert unmatched.status.code == Status.STATUS_CODE_UNSET
    assert "error.type" not in attributes(unmatched)


@pytest.mark.slow
def test_what_a_caller_does_not_keep_and_what_probes_ask_is_not_sent(collector: Collector) -> None:
    with serving(otlp_endpoint=collector.endpoint) as service:
        assert predict(service, traceparent=SENT.removesuffix("01") + "00") == 200
        for path in ("/livez", "/readyz", "/metrics"):
            assert service.client.get(path).status_code == 200
        assert predict(service, traceparent=SENT) == 200
        collector.trace(4)


def test_the_service_says_who_it_is_unless_the_environment_does(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=me,where=here")
    with serving(otlp_endpoint=collector.endpoint) as service:
        predict(service)
        collector.trace(4)
    said = collector.resource
    assert (said["service.name"], said["service.instance.id"], said["where"]) == ("pthserve", "me", "here")


@pytest.mark.slow
@pytest.mark.parametrize("sends", [True, False], ids=["sending", "not sending"])
def test_a_line_of_the_log_names_the_trace(
    collector: Collector, capfd: pytest.CaptureFixture[str], sends: bool
) -> None:
    chosen: dict[str, Any] = {"log_format": "json", "log_level": "info"}
    with serving(otlp_endpoint=collector.endpoint if sends else None, **chosen) as service:
        predict(service, traceparent=SENT)
        predict(service, traceparent="nonsense")
        if sends:
            collector.trace(8)
    written = [orjson.loads(line) for line in capfd.readouterr().err.splitlines()]
    named = [line.get("trace_id") for line in written if line.get("route") == "/predict"]
    made = [span.trace_id.hex() for span in collector.spans if span.name == "POST /predict"]
    assert named == (made if sends else [TRACE, None])
    assert named[0] == TRACE


@pytest.mark.slow
def test_a_collector_that_is_away_costs_no_answer_and_two_lines_of_the_log(
    collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    collector.status = 400
    chosen: dict[str, Any] = {"otlp_endpoint": collector.endpoint, "log_format": "json", "log_level": "info"}
    with serving(**chosen) as service:
        for number in range(1, 4):
            assert predict(service) == 200
            until(lambda: collector.asked >= number, "an attempt to send")  # noqa: B023
        collector.status = 200
        assert predict(service) == 200
        collector.trace(4)
    written = [orjson.loads(line) for line in capfd.readouterr().err.splitlines()]
    told = [
        line for line in written if line["logger"] not in ("pthserve.access.request_log", "pthserve.server")
    ]
    assert [
        (line["level"], line["message"].split(" http")[0]) for line in told if "traces" in line["message"]
    ] == [
        ("warning", "traces cannot be sent to"),
        ("info", "traces are sent to"),
    ]
    assert not [line for line in told if "opentelemetry" in line["logger"]]


@pytest.mark.slow
def test_a_collector_that_never_answers_holds_up_neither_answers_nor_the_end(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "300")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    collector.held.clear()
    with serving(otlp_endpoint=collector.endpoint) as service:
        for _ in range(40):  # 160 spans
            assert predict(service) == 200
        until(lambda: collector.asked, "an attempt to send")
    # The service has ended, and it is still being held.
    assert not collector.held.is_set()
    assert collector.asked == 1


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:9"], ids=["off", "on"])
def test_opentelemetry_is_imported_where_there_is_an_endpoint_and_nowhere_else(endpoint: str | None) -> None:
    code = """
import json, sys, threading
import httpx
from pthserve.server import Server
from pthserve.settings import Settings
from tests.serving.squares import png, squares

settings = Settings(port=0, grpc_port=0, drain_seconds=0, otlp_endpoint=json.loads(sys.argv[1]))
server = Server(settings, squares)
running = threading.Thread(target=server.run)
running.start()
url = f"http://127.0.0.1:{server.ports['http']}"
while httpx.get(f"{url}/readyz").status_code != 200:
    pass
assert httpx.post(f"{url}/predict", files={"image": png()}).status_code == 200
server.stop()
running.join()
gone = ("opentelemetry.sdk", "opentelemetry.exporter", "requests")
print(any(name.startswith(gone) for name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(endpoint)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(endpoint is not None)
