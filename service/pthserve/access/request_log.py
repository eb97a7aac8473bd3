"""Request log: one line per request, and the thread that writes the log.

A line never contains image bytes, keys, query strings or raw paths.
"""

import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any, Literal, TextIO

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pthserve.access.outcomes import GONE
from pthserve.metrics import DISCONNECTS, LOG_LINES_DROPPED, REQUEST_DURATION, REQUESTS
from pthserve.text import MESSAGE, quoted
from pthserve.tracing import REQUEST_ID, Tracer, begin

log = logging.getLogger(__name__)

QUIET = frozenset(
    {"/livez", "/readyz", "/healthz", "/metrics", "/ping", "/v2/health/live", "/v2/health/ready"}
)
"""Routes whose lines have the level debug: a cluster calls them every few seconds."""
DIGEST_HEADER = b"x-model-digest"
"""The response header, and gRPC's trailing metadata, that names the model that gave an answer."""
_BACKLOG = 10_000
"""Maximum number of lines that wait to be written."""
_PAUSE = 0.05
"""Seconds between two writes."""
_RANDOM = Random()  # noqa: S311 - an id is no secret
"""The source of ids. `os.urandom` would release the lock of the interpreter, and wait for it again."""
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class Logged:
    """ASGI middleware that assigns each request an id and a span, and counts, times and logs it."""

    def __init__(self, app: ASGIApp, tracer: Tracer | None = None) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        began = time.perf_counter()
        own_id = request_id(scope["headers"])
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # the app may be mounted in another
        span, trace = begin(None if path in QUIET else self._tracer, scope["headers"])
        code = GONE  # unless a response starts
        ended: float | None = None  # how long the client takes to read the response does not count

        async def send_with_id(message: Message) -> None:
            nonlocal code, ended
            if message["type"] == "http.response.start":
                code = message["status"]
                named = [(b"x-request-id", own_id)]
                digest = _notes(scope).get("digest")
                if digest is not None and code < 400:  # of the model that gave the answer
                    named.append((DIGEST_HEADER, str(digest).encode()))
                message["headers"] = [*message.get("headers", ()), *named]
            elif not message.get("more_body", False):
                ended = time.perf_counter()
            await send(message)

        REQUEST_ID.set(own_id.decode())
        note(scope, request_id=own_id.decode(), **trace)
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # the response 500 has been sent, so the server need not handle it
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
            seconds = (time.perf_counter() if ended is None else ended) - began
            record(method, template, code, seconds, _notes(scope))


def note(scope: Scope, **fields: object) -> None:
    """Add `fields` to the log line of the request with this `scope`."""
    _notes(scope).update(fields)


def route(scope: Scope) -> str:
    """Return the template of the matched route, such as `/v2/models/{name}`; never the raw path."""
    return getattr(scope.get("route"), "path", "unmatched")


@contextmanager
def written(form: Literal["json", "text"], level: str, stream: TextIO | None = None) -> Iterator[None]:
    """Write log records to a stream until the block ends.

    Args:
        form: `json` for one JSON object per line, `text` for lines that people read.
        level: The lowest level that is written.
        stream: Where to write; default: standard error.
    """
    lines = _Lines(_Json() if form == "json" else _Text(), stream or sys.stderr)
    root = logging.getLogger()
    levels = {
        root.name: "WARNING",
        "pthserve": level.upper(),
        # Their warnings are about bad requests, which are answered and counted anyway.
        "uvicorn.error": "ERROR",
        "PIL": "CRITICAL",
        "opentelemetry": "CRITICAL",  # it would log an error per batch of spans; `otlp` logs one in total
    }
    before = {name: logging.getLogger(name).level for name in levels}
    for name, least in levels.items():
        logging.getLogger(name).setLevel(least)
    root.addHandler(lines)
    try:
        yield
    finally:
        root.removeHandler(lines)
        for name, own in before.items():
            logging.getLogger(name).setLevel(own)
        lines.close()


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the client's X-Request-Id if it is valid, otherwise a new id."""
    for name, value in headers:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return bytes(value)
    return b"%032x" % _RANDOM.getrandbits(128)


def _notes(scope: Scope) -> dict[str, object]:
    notes: dict[str, object] = scope.setdefault("state", {}).setdefault("notes", {})
    return notes


def record(method: str, template: str, code: int, seconds: float, notes: Mapping[str, object]) -> None:
    """Count and time a request that has ended, and log its line.

    Args:
        template: The template of its route.
        code: The HTTP status.
        seconds: The duration.
        notes: Further fields of its line.
    """
    REQUESTS.labels(template, code).inc()
    REQUEST_DURATION.labels(template).observe(seconds)
    if code == GONE:
        DISCONNECTS.inc()
    level = logging.DEBUG if template in QUIET else logging.INFO
    if log.isEnabledFor(level):
        fields = {"method": method, "route": template, "code": code, "duration": round(seconds, 6), **notes}
        # Like `log.log`, but without searching the stack for a line number, which is not logged.
        message, values = "%s %s %d", (method, template, code)
        log.handle(log.makeRecord(log.name, level, "", 0, message, values, None, extra={"fields": fields}))


class _Lines(logging.Handler):
    """Writes lines in a thread, many at a time: waking it for each costs as much as the JSON of a response.

    If the stream is too slow, lines are dropped and counted, and a line reports that once it can be written.
    """

    def __init__(self, form: logging.Formatter, stream: TextIO) -> None:
        super().__init__()
        self.setFormatter(form)
        self._stream = stream
        self._backlog: deque[logging.LogRecord | str] = deque()
        self._dropped = 0
        """Number of dropped lines that the log has not reported yet."""
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
        else:  # formatted now, as it may refer to an exception and so keep a whole request in memory
            self._backlog.append(self.format(record))
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Write the remaining lines, for at most one second."""
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
            except (OSError, ValueError):  # the reader has closed it, or the disk is full
                self._count_dropped(len(waiting))
            else:
                with self._counting:
                    self._dropped -= dropped

    def _count_dropped(self, lines: int) -> None:
        LOG_LINES_DROPPED.inc(lines)
        with self._counting:
            self._dropped += lines

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`, or a line with the error if formatting fails; never raises."""
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
    """Return `value` with lone surrogates escaped, which orjson refuses."""
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
        # Indented, so that no line of an exception's message looks like a line of the log.
        traceback = self.formatException(record.exc_info).splitlines()
        return "\n".join((line, *(f"  {quoted(text, MESSAGE)}" for text in traceback)))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else quoted(value)
