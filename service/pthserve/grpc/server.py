"""Server: the Open Inference Protocol and grpc.health.v1, on the event loop that also serves HTTP."""

import errno
import logging
import math
from dataclasses import dataclass, field

import grpc

from pthserve.access.bodies import Bodies
from pthserve.access.guard import Guard
from pthserve.grpc.health import NAME, Health
from pthserve.grpc.interceptor import SERVICE, Handlers
from pthserve.grpc.procedures import CALLS
from pthserve.inference_protocol.service import Load, Service
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings
from pthserve.tracing import Tracer

CONNECTIONS = 1024
"""Maximum number of open connections."""
AGE_SECONDS = 300
"""Maximum age of a connection; calls that are running then may still use their deadline. Clients reconnect by
themselves. A call whose client does not read the response lasts until then, since gRPC cannot end a single
call."""


@dataclass
class Server:
    """A gRPC server that listens on `port`, and answers from `start` to `stop`."""

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
        bodies: Bodies | None = None,
    ) -> None:
        """Answer calls.

        Args:
            predictor: Has the model.
            load: Reloads the model, for RepositoryModelLoad.
            guard: Checks API key and rate limit; without one, all calls are admitted.
            tracer: Makes a span of each call, except for probes.
            bodies: Counts the bytes that calls hold, together with those of other servers.
        """
        service = Service(predictor, self._settings, load)
        bodies = bodies or Bodies(self._settings.max_body, self._settings.cpus)
        handlers = Handlers(service, self._settings, bodies, guard, tracer)
        self._health = Health(service.unready, self._settings.deadline, handlers.probes)
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE.full_name, handlers.of(CALLS)),
                grpc.method_handlers_generic_handler(NAME, self._health.handlers()),
            )
        )
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Accept no new calls, and let running calls continue for `grace` seconds.

        Another call of this method can shorten that.
        """
        if self._health is not None:
            self._health.end()
        await self._server.stop(grace)


async def listen(settings: Settings) -> Server:
    """Listen on `settings.grpc_port`, or on a free port if that is 0; raises OSError if that fails."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_not_of_a_client)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body),
            ("grpc.so_reuseport", 0),  # otherwise a second process could share the port unnoticed
            # gRPC would decompress a message without a limit, so the handlers do it.
            ("grpc.per_message_decompression", 0),
            # A stream whose message is not read yet gets 64 KiB, however fast its client is.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.max_concurrent_streams", 2 * settings.max_inflight),
            ("grpc.max_allowed_incoming_connections", CONNECTIONS),
            ("grpc.max_connection_age_ms", 1000 * AGE_SECONDS),
            ("grpc.max_connection_age_grace_ms", 1000 * math.ceil(settings.deadline)),
        ],
        # Calls beyond those that can be answered are accepted, to be refused with an error.
        maximum_concurrent_rpcs=2 * settings.max_inflight,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        return Server(server.add_insecure_port(address), server, settings)
    except RuntimeError as error:
        raise OSError(errno.EADDRINUSE, f"cannot listen for gRPC on {address}: the port is in use") from error


def _is_not_of_a_client(record: logging.LogRecord) -> bool:
    """Return whether a log record of grpcio is worth writing: a traceback because a client left is not."""
    return not str(record.msg).startswith("ExecuteBatchError")
