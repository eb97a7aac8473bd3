"""OTLP: send the spans of requests to an OpenTelemetry collector. No request waits for the collector.

The environment variables OTEL_* of the SDK configure sampling, headers and service name.
"""

import logging
import socket
import threading
import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

import pthserve
from pthserve.addresses import printable
from pthserve.tracing import Caller

log = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0
"""Maximum time in seconds to send the last spans at the end."""
_PATH = "/v1/traces"


class Otlp:
    """A `tracing.Tracer` that sends to the collector at `endpoint`, an http address with or without a path.

    A thread sends spans in batches; those that it cannot send are dropped.
    """

    def __init__(self, endpoint: str) -> None:
        base = endpoint.rstrip("/")
        exporter = OTLPSpanExporter(base if base.endswith(_PATH) else base + _PATH)
        defaults = {
            "service.name": "pthserve",
            "service.version": pthserve.__version__,
            "service.instance.id": socket.gethostname(),  # the pod's name
        }
        resource = Resource.create({**defaults, **OTELResourceDetector().detect().attributes})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_LoggingExporter(exporter, endpoint)))
        self._tracer = self._provider.get_tracer("pthserve", pthserve.__version__)

    def begin(self, caller: Caller | None) -> "Request":
        """Start the span of a request."""
        return Request(self._tracer, _context(caller))

    def close(self) -> None:
        """Send the remaining spans, for at most CLOSE_SECONDS."""
        # The SDK would wait half a minute for a collector that does not answer.
        closing = threading.Thread(target=self._provider.shutdown, name="otlp-close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class Request:
    """The span of one request, with a child span for each stage."""

    def __init__(self, tracer: Tracer, context: Context) -> None:
        self._tracer = tracer
        self._epoch = time.time_ns() - time.perf_counter_ns()
        self._span: Span = tracer.start_span("request", context, SpanKind.SERVER)
        trace = self._span.get_span_context()
        self.trace_id = f"{trace.trace_id:032x}" if trace.is_valid else ""

    def stage(self, name: str, began: float, seconds: float, **attributes: str | float) -> None:
        """Add a child span.

        Args:
            began: Its start, on the clock of time.perf_counter().
            seconds: Its duration.
        """
        if self._span.is_recording():
            start = self._epoch + int(began * 1e9)
            stage = self._tracer.start_span(
                name,
                set_span_in_context(self._span, Context()),
                attributes={f"pthserve.{key}": value for key, value in attributes.items()},
                start_time=start,
            )
            stage.end(start + int(seconds * 1e9))

    def end(self, name: str, attributes: dict[str, str | int], fault: str = "") -> None:
        """End the span.

        Args:
            fault: The error, if the service caused it; "" otherwise.
        """
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if fault:
            self._span.set_attribute("error.type", fault)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class _LoggingExporter(SpanExporter):
    """Sends spans, and logs when sending starts to fail and when it works again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = printable(endpoint)
        self._works = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        works = result is SpanExportResult.SUCCESS
        if works != self._works:
            if works:
                log.info("traces are sent to %s again", self._endpoint)
            else:
                log.warning(
                    "traces cannot be sent to %s; they are dropped until it is reachable again",
                    self._endpoint,
                )
        self._works = works
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _context(caller: Caller | None) -> Context:
    if caller is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if caller.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([caller.state] if caller.state else [])
    parent = SpanContext(caller.trace, caller.span, is_remote=True, trace_flags=flags, trace_state=state)
    return set_span_in_context(NonRecordingSpan(parent), Context())
