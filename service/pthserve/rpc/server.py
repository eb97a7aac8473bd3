"""Server: the Open Inference Protocol and grpc.health.v1, on the event loop that also serves HTTP."""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from pthserve.errors import MalformedRequest, PthserveError, RateLimited, Unavailable
from pthserve.metrics import DISCONNECTS, REQUEST_DURATION, REQUESTS
from pthserve.protocol.service import Load, Service
from pthserve.protos import inference_pb2 as pb
from pthserve.rpc.calls import CALLS, Call
from pthserve.rpc.codes import code
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings

log = logging.getLogger(__name__)

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH_EVERY = 0.5
"""Seconds between two looks at whether the service is ready, for those who watch its health."""

Context = grpc.aio.ServicerContext[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Server:
    """A gRPC server that listens.

    port: the one it took.
    """

    port: int
    _server: grpc.aio.Server
    _health: "asyncio.Task[None]"

    async def stop(self, grace: float) -> None:
        """Let no new call in, and give those in flight up to `grace` seconds."""
        self._health.cancel()
        with suppress(asyncio.CancelledError):
            await self._health
        await self._server.stop(grace)


async def start(predictor: Predictor, settings: Settings, load: Load | None = None) -> Server:
    """Listen on `settings.grpc_port` (0 takes a free one). Raises OSError where that cannot be.

    load: reads the model's file again, for RepositoryModelLoad.
    """
    service = Service(predictor, settings, load)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body),
            ("grpc.so_reuseport", 0),  # or a second process would share the port without a word
        ]
    )
    handlers = {name: _handler(service, name, call) for name, call in CALLS.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(DESCRIPTOR.full_name, handlers),))
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await _tell(servicer, service)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen for gRPC on {address}: is the port taken?") from error
    await server.start()
    return Server(port, server, asyncio.create_task(_follow(servicer, service)))


async def _follow(servicer: Any, service: Service) -> None:
    while True:
        await asyncio.sleep(HEALTH_EVERY)
        await _tell(servicer, service)


async def _tell(servicer: Any, service: Service) -> None:
    states = health_pb2.HealthCheckResponse
    state = states.NOT_SERVING if service.unready() else states.SERVING
    for name in ("", DESCRIPTOR.full_name):
        await servicer.set(name, state)


def _handler(service: Service, name: str, call: Call) -> "grpc.RpcMethodHandler[bytes, bytes]":
    route = f"/{DESCRIPTOR.full_name}/{name}"
    request_class = GetMessageClass(DESCRIPTOR.methods_by_name[name].input_type)

    async def handle(body: bytes, context: Context) -> bytes:
        began = time.perf_counter()
        status = grpc.StatusCode.INTERNAL
        try:
            response = await call(service, _parse(request_class, body), context.time_remaining())
            status = grpc.StatusCode.OK
            return response.SerializeToString()
        except PthserveError as error:
            status = code(error)
            await context.abort(status, str(error), _retry(error))
        except asyncio.CancelledError:
            status = grpc.StatusCode.CANCELLED
            DISCONNECTS.inc()
            raise
        except Exception:
            log.exception("%s failed", route)
            await context.abort(status, "the service failed; its log says how")
        finally:
            REQUESTS.labels(route, status.name).inc()
            REQUEST_DURATION.labels(route).observe(time.perf_counter() - began)

    # The body is parsed in the handler: gRPC itself would call one that cannot be an internal error.
    return grpc.unary_unary_rpc_method_handler(handle)


def _parse(request_class: type[Message], body: bytes) -> Message:
    try:
        return request_class.FromString(body)
    except DecodeError as error:
        raise MalformedRequest("the message is not one of this procedure") from error


def _retry(error: PthserveError) -> tuple[tuple[str, str], ...]:
    """Tells a client that retries when to; the header is gRPC's own (retry design, A6)."""
    if isinstance(error, Unavailable | RateLimited):
        return (("grpc-retry-pushback-ms", str(round(1000 * error.retry_after))),)
    return ()
