"""The gRPC front of a whole service: it comes, goes and is measured with the HTTP one."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.http_process import process
from tests.http_service import PATIENCE, Service, serving
from tests.serving.squares import Gate, Squares, png, squares

from pthserve.grpc.interceptor import SERVICE
from pthserve.protos import inference_pb2 as pb
from pthserve.server import Server
from pthserve.settings import Settings

from ..shared import refuses, until

pytestmark = pytest.mark.slow

STATES = health_pb2.HealthCheckResponse


@contextmanager
def connected(port: int) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


def infer(channel: grpc.Channel, model: str, **metadata: str) -> Any:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(png())
    call = channel.unary_unary(
        f"/{SERVICE.full_name}/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    return call.future(request, timeout=PATIENCE, metadata=tuple(metadata.items()))


def health(channel: grpc.Channel) -> int:
    check = health_pb2_grpc.HealthStub(channel).Check
    return int(check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status)


def name(service: Service) -> str:
    return str(service.client.get("/info").json()["name"])


def test_both_fronts_share_a_predictor_and_its_metrics() -> None:
    route = f'pthserve_requests_total{{code="200",route="/{SERVICE.full_name}/ModelInfer"}}'
    with serving(grpc_port=0) as service, connected(service.server.ports["grpc"]) as channel:
        before = service.metric(route)
        outputs = infer(channel, name(service)).result().outputs
        assert [*outputs[2].contents.bytes_contents] == [b"red"]
        until(lambda: service.metric(route) == before + 1)


def test_both_fronts_share_keys_and_rates_and_probes_need_none(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key\n")
    key = {"X-API-Key": "a-key"}
    with serving(grpc_port=0, api_keys=tmp_path / "keys", rate_limit="2/hour") as service:
        served = str(service.client.get("/info", headers=key).json()["name"])
        with connected(service.server.ports["grpc"]) as channel:
            assert health(channel) == STATES.SERVING
            with pytest.raises(grpc.RpcError) as caught:
                infer(channel, served).result()
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert infer(channel, served, authorization="Bearer a-key").result().outputs
            with pytest.raises(grpc.RpcError) as caught:
                infer(channel, served, authorization="Bearer a-key").result()
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert service.client.get("/info", headers=key).status_code == 429


def test_a_grpc_port_that_is_taken_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(port=0, grpc_port=taken.getsockname()[1])
        with pytest.raises(OSError, match=f"gRPC on 127.0.0.1:{settings.grpc_port}"):
            Server(settings, squares)


def test_grpc_is_not_imported_where_nobody_asked_for_it() -> None:
    code = "import sys, pthserve.server; assert not {'grpc', 'google.protobuf'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_call_in_flight_is_finished_and_no_other_let_in_when_the_service_stops() -> None:
    gate = Gate()
    with serving(squares(engine := Squares()), grpc_port=0) as service:
        port = service.server.ports["grpc"]
        engine.hook = gate
        with connected(port) as channel:
            call = infer(channel, name(service))
            assert gate.entered.wait(PATIENCE)
            service.server.stop()
            try:
                until(lambda: refuses(port), "a closed listener")
            finally:
                gate.opened.set()
            assert len(call.result().outputs) == 4


def test_draining_answers_calls_and_is_not_serving() -> None:
    with process(drain_seconds=60, grpc_port=0) as service, connected(service.ports["grpc"]) as channel:
        until(service.ready)
        assert health(channel) == STATES.SERVING
        model = service.client.get("/info").json()["name"]
        service.child.send_signal(signal.SIGTERM)
        until(lambda: health(channel) == STATES.NOT_SERVING)
        assert len(infer(channel, model).result().outputs) == 4
        service.child.send_signal(signal.SIGTERM)  # skips the rest of the 60 s
        code, log = service.end()
        assert code == 0, log


def test_a_call_that_hangs_does_not_outlast_the_third_signal() -> None:
    gate = Gate()
    with serving(squares(engine := Squares()), grpc_port=0, deadline=3600.0) as service:
        engine.hook = gate
        with connected(service.server.ports["grpc"]) as channel:
            call = infer(channel, name(service))
            assert gate.entered.wait(PATIENCE)
            for _ in range(3):
                service.server.stop()
            try:
                assert isinstance(call.exception(PATIENCE), grpc.RpcError)
            finally:
                gate.opened.set()
