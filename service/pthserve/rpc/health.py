"""Health: grpc.health.v1, which probes and load balancers ask."""

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pthserve.rpc.handlers import SERVICE

EVERY = 0.25
"""Seconds between two looks at whether the service is ready, for those who watch its health."""

_NAMES = ("", SERVICE.full_name)
_States = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Serving, of the server and of its one service alike, while `unready` gives no reason against it."""

    def __init__(self, unready: Callable[[], str | None]) -> None:
        self._unready = unready
        self._ended = asyncio.Event()

    def end(self) -> None:
        """End the calls of those who watch: they would keep a server from stopping."""
        self._ended.set()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """The state of the service that `request` names."""
        if request.service not in _NAMES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return _States(status=self._state(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:  # noqa: N802
        """The state of the service that `request` names, and each that follows."""
        told = None
        while not self._ended.is_set():
            state = self._state(request.service)
            if state != told:
                await context.write(_States(status=state))
                told = state
            try:
                async with asyncio.timeout(EVERY):
                    await self._ended.wait()
            except TimeoutError:
                pass

    def _state(self, name: str) -> int:
        if name not in _NAMES:
            return int(_States.SERVICE_UNKNOWN)
        return int(_States.NOT_SERVING if self._unready() else _States.SERVING)
