"""Server: the Open Inference Protocol and grpc.health.v1, on the event loop that also serves HTTP."""

import errno
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2_grpc

from pthserve.http.guard import Guard
from pthserve.protocol.service import Load, Service
from pthserve.rpc.calls import CALLS
from pthserve.rpc.handlers import SERVICE, Handlers
from pthserve.rpc.health import Health
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings
from pthserve.tracing import Tracer


@dataclass
class Server:
    """A gRPC server that has its port, and answers from `start` to `stop`.

    port: the one it took.
    """

    port: int
    _server: grpc.aio.Server
    _settings: Settings
    _health: Health | None = field(default=None, init=False)

    async def start(
        self,
        predictor: Predictor,
        load: Load | None = None,
        guard: Guard | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Answer calls.

        load: reads the model's file again, for RepositoryModelLoad. guard: says who is let in.
        tracer: makes a span of each call, but of probes.
        """
        service = Service(predictor, self._settings, load)
        handlers = Handlers(service, self._settings, guard, tracer)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers.of(CALLS)),)
        )
        self._health = Health(service.unready)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Let no new call in, and give those in flight up to `grace` seconds; or fewer, asked again."""
        if self._health is not None:
            self._health.end()
        await self._server.stop(grace)


async def listen(settings: Settings) -> Server:
    """Take `settings.grpc_port`, or a free one where that is 0; raises OSError where it cannot be had."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body),
            ("grpc.so_reuseport", 0),  # or a second process would share the port without a word
        ],
        # Beyond those that can be answered there is room for those that are told so.
        maximum_concurrent_rpcs=2 * settings.max_inflight,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        return Server(server.add_insecure_port(address), server, settings)
    except RuntimeError as error:
        raise OSError(errno.EADDRINUSE, f"cannot listen for gRPC on {address}: the port is taken") from error
