"""Tracing: the trace that a request is part of, and its span where there is somebody to send it to.

What sends spans is `otlp`, which is imported where an endpoint is set and nowhere else.
"""

import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

# Behind what is known of it, a later version than 00 may say more.
_TRACEPARENT = re.compile(
    rb"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?P<span>(?!0{16})[0-9a-f]{16})"
    rb"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Where a request comes from, as its `traceparent` says (W3C Trace Context).

    trace, span: numbers of 128 and 64 bits; sampled: whether the caller keeps its own span.
    state: the `tracestate` beside it, as it was sent.
    """

    trace: int
    span: int
    sampled: bool
    state: str = ""


class Span(Protocol):
    """The span of one request, from when it was made until `end`."""

    trace_id: str
    """32 hexadecimal digits; empty where tracing is switched off by the library's own means."""

    def stage(self, name: str, began: float, seconds: float, **attributes: str | float) -> None:
        """A span below this one; began: on time.perf_counter()'s clock."""

    def end(self, name: str, attributes: dict[str, str | int], fault: str = "") -> None:
        """End now. fault: what went wrong, where the service is at fault."""


class Tracer(Protocol):
    """Makes spans, and sends them while nobody waits."""

    def begin(self, caller: Caller | None) -> Span:
        """The span of a request that begins now."""

    def close(self) -> None:
        """Send what there is, if that takes no more than a moment."""


SPAN: ContextVar[Span | None] = ContextVar("SPAN", default=None)
"""The span of the request that is being answered."""
REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="")
"""The id of the request that is being answered, as in its log line; empty outside of requests."""


def caller(headers: Iterable[tuple[bytes, bytes]]) -> Caller | None:
    """The caller that lower-case `headers` name, if they name one, and that as they should."""
    parents = []
    states = []
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value)
        elif name == b"tracestate":
            states.append(value)
    found = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if found is None or (found["more"] and found["version"] == b"00"):
        return None
    trace, span, flags = (int(found[part], 16) for part in ("trace", "span", "flags"))
    return Caller(trace, span, bool(flags & 1), b",".join(states).decode("latin-1"))


def begin(
    tracer: Tracer | None, headers: Iterable[tuple[bytes, bytes]]
) -> tuple[Span | None, dict[str, str]]:
    """The span of a request that has these headers, if there is a tracer; and what its log line says."""
    known = caller(headers)
    if tracer is None:
        return None, {"trace_id": f"{known.trace:032x}"} if known else {}
    span = tracer.begin(known)
    SPAN.set(span)  # a request is a task of its own: nobody else sees it
    return span, {"trace_id": span.trace_id} if span.trace_id else {}
