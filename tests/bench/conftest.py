"""A service of a few lines, which counts what it is asked and by how many at once."""

import email
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Service:
    """status, answers: what is answered; work: what is done before, given the request's number from 0."""

    status: int = 200
    work: Callable[[int], None] = lambda _: None
    url: str = ""
    connections: int = 0
    most_at_once: int = 0
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def parts(self, number: int) -> dict[Any, Any]:
        """The form's fields in request `number`, as Python's own parser of MIME sees them."""
        head = f"Content-Type: {self.headers[number]['Content-Type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + self.bodies[number])
        return {
            part.get_param("name", header="Content-Disposition"): part.get_payload(decode=True)
            for part in message.get_payload()
        }

    def enter(self) -> int:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return len(self.bodies)

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1


@pytest.fixture
def service() -> Iterator[Service]:
    state = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            state.connections += 1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            number = state.enter()
            state.bodies.append(body)
            state.headers.append(dict(self.headers))
            state.paths.append(self.path)
            try:
                state.work(number)
            finally:
                state.leave()
            if state.status == 0:
                self.close_connection = True
                return
            self.send_response(state.status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def slow() -> Callable[[int], None]:
    return lambda _: time.sleep(0.02)
