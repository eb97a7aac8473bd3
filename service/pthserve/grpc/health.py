"""Health: grpc.health.v1, for probes and load balancers. It needs no key, and has its own limits."""

import asyncio
from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from pthserve.errors import MalformedRequest, NotFound, PthserveError
from pthserve.grpc.arrivals import Arrivals, Context, Places
from pthserve.grpc.interceptor import SERVICE
from pthserve.grpc.status_codes import code
from pthserve.inference_protocol.bounds import MAX_TEXT
from pthserve.inference_protocol.compression import inflated, is_compressed

NAME = "grpc.health.v1.Health"
EVERY = 0.25
"""Seconds between two checks of readiness, for clients that watch."""
WATCHERS = 64
"""Maximum number of concurrent calls to Watch, which last as long as their clients want."""
ARRIVING, WAITING = 2, 64
"""Maximum number of requests that arrive at the same time, and of calls that wait for their turn."""

_NAMES = ("", SERVICE.full_name)
_States = health_pb2.HealthCheckResponse


class Health:
    """Reports SERVING, for the server and for its one service, while `unready` returns None.

    Args:
        unready: Returns why no traffic should be sent, or None.
        deadline: Seconds in which a request must arrive.
        probes: The places that calls to Check share with other calls that need no key.
    """

    def __init__(self, unready: Callable[[], str | None], deadline: float, probes: Places) -> None:
        self._unready = unready
        self._deadline = deadline
        self._probes = probes
        self._arrivals = Arrivals(ARRIVING, WAITING)
        self._watchers = Places(
            WATCHERS, f"the limit of {WATCHERS} Watch calls is reached; use Check instead"
        )
        self._ended = asyncio.Event()

    def handlers(self) -> dict[str, "grpc.RpcMethodHandler[bytes, bytes]"]:
        """Return one handler per procedure; each reads its request itself, like those of the service."""
        return {
            "Check": grpc.stream_unary_rpc_method_handler(self._check),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }

    def end(self) -> None:
        """End all calls to Watch, which would keep the server from stopping."""
        self._ended.set()

    async def _check(self, _: object, context: Context) -> bytes:
        """Return the state of the service that the request names."""
        try:
            self._probes.take(context)
            name = await self._name(context)
            if name not in _NAMES:
                raise NotFound("the service was not found")
        except PthserveError as error:
            await context.abort(code(error), str(error))
        return bytes(_States(status=self._state(name)).SerializeToString())

    async def _watch(self, _: object, context: Context) -> None:
        """Send the state of the service that the request names, and each change of it."""
        try:
            self._watchers.take(context)
            name = await self._name(context)
        except PthserveError as error:
            await context.abort(code(error), str(error))
        sent = None
        while not self._ended.is_set():
            state = self._state(name)
            if state != sent:
                await context.write(_States(status=state).SerializeToString())
                sent = state
            try:
                async with asyncio.timeout(EVERY):
                    await self._ended.wait()
            except TimeoutError:
                pass

    async def _name(self, context: Context) -> str:
        body = await self._arrivals.read(context, asyncio.get_running_loop().time() + self._deadline)
        if len(body) <= MAX_TEXT and is_compressed(body):
            body = inflated(body, MAX_TEXT)
        if len(body) > MAX_TEXT:
            raise MalformedRequest(f"the message has more than {MAX_TEXT} bytes")
        try:
            return str(health_pb2.HealthCheckRequest.FromString(body).service)
        except DecodeError as error:
            raise MalformedRequest("the message cannot be parsed as a request of this procedure") from error

    def _state(self, name: str) -> int:
        if name not in _NAMES:
            return int(_States.SERVICE_UNKNOWN)
        return int(_States.NOT_SERVING if self._unready() else _States.SERVING)
