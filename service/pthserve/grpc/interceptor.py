"""Interceptor: limits, errors, metrics and the log line of each call, around the procedures."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from pthserve.access.bodies import Bodies, bare
from pthserve.access.guard import Guard
from pthserve.access.outcomes import GONE, status
from pthserve.access.request_log import DIGEST_HEADER, record, request_id
from pthserve.errors import MalformedRequest, PthserveError, RateLimited, Unavailable
from pthserve.grpc import message_limits
from pthserve.grpc.arrivals import Arrivals, Context, Places
from pthserve.grpc.status_codes import code
from pthserve.inference_protocol.compression import inflated, is_compressed
from pthserve.inference_protocol.service import Service
from pthserve.protos import inference_pb2 as pb
from pthserve.settings import Settings
from pthserve.tracing import REQUEST_ID, Span, Tracer, begin

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
ARRIVING = 8
"""Maximum number of messages that arrive at the same time, each of up to the maximum size."""

PROBES = 64
"""Maximum number of concurrent calls that need no key, without those that watch."""

OPEN = {"ServerLive", "ServerReady"}
"""Probes: calls that need no key, do not count for the rate limit and have no span. Their messages are empty
and are not read, so they hold no memory."""

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Terms:
    """A call's deadline on the event loop's clock (`until`), and the fields of its log line (`notes`)."""

    until: float
    notes: dict[str, object] = field(default_factory=dict)

    def remaining(self) -> float:
        """Return the seconds that remain; negative after the deadline."""
        return self.until - asyncio.get_running_loop().time()


Call = Callable[[Service, Any, Terms], Awaitable[Message]]
"""A procedure: from the request message to the response message; raises PthserveError."""


class Handlers:
    """Makes the gRPC handlers of the procedures of `service`.

    Args:
        bodies: Counts the bytes of messages together with those of HTTP bodies, and parses the large ones.
        guard: Checks API key and rate limit of each call that is not in OPEN.
        tracer: Makes a span of each call that is not in OPEN.
    """

    def __init__(
        self,
        service: Service,
        settings: Settings,
        bodies: Bodies,
        guard: Guard | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._service = service
        self._guard = guard
        self._tracer = tracer
        self._deadline = settings.deadline
        self._bodies = bodies
        self.probes = Places(PROBES, f"the limit of {PROBES} calls without a key is reached; try again later")
        self._arrivals = Arrivals(ARRIVING, settings.max_inflight)

    def of(self, calls: Mapping[str, Call]) -> dict[str, "grpc.RpcMethodHandler[bytes, bytes]"]:
        """Return one handler per call.

        Each handler is declared as one for a stream of requests; for a client that sends one request, the
        bytes on the wire are the same. So the message is read and parsed here: after the key was checked,
        with a time limit, and with a clear error if it is malformed.
        """
        return {name: self._handler(name, call) for name, call in calls.items()}

    def _handler(self, name: str, call: Call) -> "grpc.RpcMethodHandler[bytes, bytes]":
        route = f"/{SERVICE.full_name}/{name}"
        request_class = GetMessageClass(SERVICE.methods_by_name[name].input_type)

        async def handle(_: object, context: Context) -> bytes:
            began = time.perf_counter()
            headers = _headers(context)
            span, trace = begin(None if name in OPEN else self._tracer, headers)
            terms = self._terms(context, headers, trace)
            trailer = (("x-request-id", str(terms.notes["request_id"])),)
            context.set_trailing_metadata(trailer)
            REQUEST_ID.set(str(terms.notes["request_id"]))
            http, grpc_code = 500, grpc.StatusCode.INTERNAL
            try:
                if self._guard is not None and name not in OPEN:
                    self._guard.admit(headers, context.peer())
                if name in OPEN:
                    self.probes.take(context)
                    response = (await call(self._service, request_class(), terms)).SerializeToString()
                else:
                    response = await self._answer(request_class, call, context, terms)
                if "digest" in terms.notes:
                    digest = (DIGEST_HEADER.decode(), str(terms.notes["digest"]))
                    context.set_trailing_metadata((*trailer, digest))
                http, grpc_code = 200, grpc.StatusCode.OK
            except PthserveError as error:
                http, grpc_code = status(error), code(error)
                bare(error)
                await context.abort(grpc_code, str(error), (*trailer, *_retry(error)))
            except asyncio.CancelledError:
                http, grpc_code = GONE, grpc.StatusCode.CANCELLED
                raise
            except Exception:
                log.exception("internal error", extra={"fields": terms.notes})
                message = "internal error; the log of the service has the details under this x-request-id"
                await context.abort(grpc.StatusCode.INTERNAL, message, trailer)
            finally:
                if span is not None:
                    _end(span, route[1:], grpc_code, failed=http >= 500)
                # The code is HTTP's, so that one query counts the errors of both.
                record("GRPC", route, http, time.perf_counter() - began, terms.notes)
            return response

        return grpc.stream_unary_rpc_method_handler(handle)

    def _terms(self, context: Context, headers: Headers, trace: Mapping[str, str]) -> Terms:
        granted = context.time_remaining()
        seconds = self._deadline if granted is None else min(granted, self._deadline)
        until = asyncio.get_running_loop().time() + seconds
        return Terms(until, {"request_id": request_id(headers).decode(), **trace})

    async def _answer(
        self, request_class: type[Message], call: Call, context: Context, terms: Terms
    ) -> bytes:
        holding = self._bodies.hold()
        # When the response is sent or the client left. The stubs want a method, but a function works.
        context.add_done_callback(lambda _: holding.close())  # type: ignore[arg-type]
        body = await self._arrivals.read(context, terms.until)
        holding.grow(len(body))
        inflate = partial(inflated, limit=self._bodies.max_body) if is_compressed(body) else None
        parse = partial(_parsed, request_class)
        request = await self._bodies.read(holding, body, terms.until, parse, inflate)
        response = (await call(self._service, request, terms)).SerializeToString()
        holding.shrink(holding.size)
        holding.grow(len(response))
        return response


def _headers(context: Context) -> Headers:
    return [
        (name.encode(), value.encode() if isinstance(value, str) else value)
        for name, value in context.invocation_metadata() or ()
    ]


def _parsed(request_class: type[Message], body: bytes) -> Message:
    message_limits.check(request_class, body)
    try:
        return request_class.FromString(body)
    except DecodeError as error:
        raise MalformedRequest("the message cannot be parsed as a request of this procedure") from error


def _end(span: Span, method: str, code: grpc.StatusCode, *, failed: bool) -> None:
    attributes: dict[str, str | int] = {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.response.status_code": code.name,
    }
    span.end(method, attributes, code.name if failed else "")


def _retry(error: PthserveError) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata that tells a client when to retry, as gRPC defines it."""
    if isinstance(error, Unavailable | RateLimited):
        return (("grpc-retry-pushback-ms", str(round(1000 * error.retry_after))),)
    return ()
