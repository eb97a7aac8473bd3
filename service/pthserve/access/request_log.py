"""One line a request, and the writer of the log.

A line never holds image bytes, keys, query strings or raw paths.
"""

import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pthserve.access.outcomes import GONE
from pthserve.metrics import DISCONNECTS, LOG_LINES_DROPPED, REQUEST_DURATION, REQUESTS
from pthserve.text import MESSAGE, quoted
from pthserve.tracing import Tracer, begin

log = logging.getLogger(__name__)

QUIET = frozenset(
    {"/livez", "/readyz", "/healthz", "/metrics", "/ping", "/v2/health/live", "/v2/health/ready"}
)
"""Routes whose lines are at level debug: a cluster asks them every few seconds."""
_BACKLOG = 10_000
"""Lines that may wait to be written."""
_PAUSE = 0.05
"""Seconds between two writes."""
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class Logged:
    """ASGI middleware: gives each request its id and its span, counts it, times it, and logs its line."""

    def __init__(self, app: ASGIApp, tracer: Tracer | None = None) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        began = time.perf_counter()
        its_id = request_id(scope["headers"])
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # where it is mounted
        span, trace = begin(None if path in QUIET else self._tracer, scope["headers"])
        code = GONE  # until an answer begins

        async def send_with_id(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", its_id)]
            await send(message)

        note(scope, request_id=its_id.decode(), **trace)
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # it has been answered with 500; the server has nothing to add
            log.exception("internal error", extra={"fields": _notes(scope)})
        finally:
            method, template = scope["method"], route(scope)
            if span is not None:
                attributes = {
                    "http.request.method": method,
                    "http.route": template,
                    "http.response.status_code": code,
                }
                span.end(f"{method} {template}", attributes, str(code) if code >= 500 else "")
            record(method, template, code, time.perf_counter() - began, _notes(scope))


def note(scope: Scope, **fields: object) -> None:
    """Add `fields` to the line of the request that `scope` is of."""
    _notes(scope).update(fields)


def route(scope: Scope) -> str:
    """The template of the route that was taken, such as `/v2/models/{name}`; never the raw path."""
    return getattr(scope.get("route"), "path", "unmatched")


@contextmanager
def written(form: Literal["json", "text"], level: str, stream: TextIO | None = None) -> Iterator[None]:
    """Write what is logged to `stream` (default: standard error) until the block is left.

    form: one JSON object a line, or lines for a person; level: the least severe that is written.
    """
    lines = _Lines(_Json() if form == "json" else _Text(), stream or sys.stderr)
    root = logging.getLogger()
    before = root.level
    levels = {
        "pthserve": level.upper(),
        # Their warnings are of what clients send, which is counted and answered.
        "uvicorn.error": "ERROR",
        "PIL": "CRITICAL",
        "opentelemetry": "CRITICAL",  # it would complain of every batch of spans; `otlp` says it once
    }
    for name, least in levels.items():
        logging.getLogger(name).setLevel(least)
    root.setLevel("WARNING")
    root.addHandler(lines)
    try:
        yield
    finally:
        root.removeHandler(lines)
        root.setLevel(before)
        lines.close()


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's X-Request-Id where it is one, or a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return bytes(value)
    return os.urandom(16).hex().encode()


def _notes(scope: Scope) -> dict[str, object]:
    notes: dict[str, object] = scope.setdefault("state", {}).setdefault("notes", {})
    return notes


def record(method: str, template: str, code: int, seconds: float, notes: Mapping[str, object]) -> None:
    """Count and time a request that has been answered, and log its line.

    template: of its route; code: HTTP's; notes: what else its line says.
    """
    REQUESTS.labels(template, code).inc()
    REQUEST_DURATION.labels(template).observe(seconds)
    if code == GONE:
        DISCONNECTS.inc()
    level = logging.DEBUG if template in QUIET else logging.INFO
    if log.isEnabledFor(level):
        fields = {"method": method, "route": template, "code": code, "duration": round(seconds, 6), **notes}
        # As `log.log` does, but without a walk up the stack for a line number that no line has.
        message, values = "%s %s %d", (method, template, code)
        log.handle(log.makeRecord(log.name, level, "", 0, message, values, None, extra={"fields": fields}))


class _Lines(logging.Handler):
    """Has a thread write the lines, many at a time: waking it for each costs as much as an answer's JSON.

    Where the stream cannot keep up, lines are dropped and counted, and a line says so once it can again.
    """

    def __init__(self, form: logging.Formatter, stream: TextIO) -> None:
        super().__init__()
        self.setFormatter(form)
        self._stream = stream
        self._backlog: deque[logging.LogRecord | str] = deque()
        self._dropped = 0
        """Lines that were dropped since the log last said how many."""
        self._counting = threading.Lock()
        self._some = threading.Event()
        self._ending = threading.Event()
        self._writer = threading.Thread(target=self._write, name="logs", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._backlog) >= _BACKLOG:
            self._count_dropped(1)
        elif record.levelno < logging.WARNING:
            self._backlog.append(record)
        else:  # what it refers to may be an exception, and so a whole request
            self._backlog.append(self.format(record))
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Write what there is; a stream that is stuck by now is left behind."""
        self._ending.set()
        self._some.set()
        self._writer.join(1)
        super().close()

    def _write(self) -> None:
        closed = False
        while not closed:
            self._some.wait()
            closed = self._ending.wait(_PAUSE)
            self._some.clear()
            waiting = [self._backlog.popleft() for _ in range(len(self._backlog))]
            lines = [line if isinstance(line, str) else self.format(line) for line in waiting]
            dropped = self._dropped
            if dropped:
                lines.append(self.format(_notice(dropped)))
            try:
                self._stream.write("".join(f"{line}\n" for line in lines))
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads it any more, or it is on a full disk
                self._count_dropped(len(waiting))
            else:
                with self._counting:
                    self._dropped -= dropped

    def _count_dropped(self, lines: int) -> None:
        LOG_LINES_DROPPED.inc(lines)
        with self._counting:
            self._dropped += lines

    def format(self, record: logging.LogRecord) -> str:
        """The record's line; where that fails, a line that says so: what waits behind it is still written."""
        try:
            return super().format(record)
        except Exception as error:
            lost = logging.LogRecord(
                *(record.name, logging.ERROR, record.pathname, record.lineno),
                *("a log line could not be formatted: %s", (f"{type(error).__name__}: {error}",), None),
            )
            return super().format(lost)


def _notice(dropped: int) -> logging.LogRecord:
    message = "%d log lines were dropped: standard error could not be written, or not fast enough"
    return log.makeRecord(log.name, logging.WARNING, "", 0, message, (dropped,), None)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": quoted(record.getMessage(), MESSAGE),
            **{name: _plain(value) for name, value in getattr(record, "fields", {}).items()},
        }
        if record.exc_info:
            line["traceback"] = _plain(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str).decode()


def _plain(value: object) -> object:
    """`value`, with what is no text in it escaped: orjson takes no half of a surrogate pair."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(
            f"{name}={_short(value)}"
            for name, value in getattr(record, "fields", {}).items()
            if name not in ("method", "route", "code")  # the message has them
        )
        message = quoted(record.getMessage(), MESSAGE)
        line = f"{clock} {record.levelname.lower():7} {message} {fields}".rstrip()
        if not record.exc_info:
            return line
        # Indented, so that no line of an exception's message can pass for a line of the log.
        traceback = self.formatException(record.exc_info).splitlines()
        return "\n".join((line, *(f"  {quoted(text, MESSAGE)}" for text in traceback)))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else quoted(value)
