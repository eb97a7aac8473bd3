"""Server: the Open Inference Protocol and grpc.health.v1, on the event loop that also serves HTTP."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from pthserve.protocol.service import Load, Service
from pthserve.rpc.calls import CALLS
from pthserve.rpc.handlers import SERVICE, Handlers
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings

HEALTH_EVERY = 0.5
"""Seconds between two looks at whether the service is ready, for those who ask for its health."""


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
    """Listen on `settings.grpc_port`; 0 takes a free one. Raises OSError where that cannot be.

    load: reads the model's file again, for RepositoryModelLoad.
    """
    service = Service(predictor, settings, load)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body),
            ("grpc.so_reuseport", 0),  # or a second process would share the port without a word
        ],
        # Beyond those that can be answered there is room for those that are told so.
        maximum_concurrent_rpcs=2 * settings.max_inflight,
    )
    handlers = Handlers(service, settings)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers.of(CALLS)),)
    )
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
    for name in ("", SERVICE.full_name):
        await servicer.set(name, state)
