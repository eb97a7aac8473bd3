"""Servers that models are downloaded from, each a real one on this machine, and what they have seen."""

import hashlib
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]


class ServerState(Protocol):
    """What every server has.

    rate: bytes per second, or None for as fast as it goes. url: the address, once it serves.
    """

    rate: float | None
    url: str


State = TypeVar("State", bound=ServerState)


@dataclass
class FileServer:
    """A web server of the files in `folder`, with entity tags, ranges and `If-Range`.

    tags: whether it sends entity tags. rate: bytes a second. cut: called with a path, gives the bytes after
    which the connection breaks, or None. authorization: what it asks for. redirect: where it sends
    everybody. asked: method, path and headers of each request. route: gives a file's path in `folder` for
    the path of a request, or the whole answer.
    """

    folder: Path
    tags: bool = True
    rate: float | None = None
    cut: Callable[[str], int | None] = lambda _path: None
    authorization: str | None = None
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    route: Callable[[str], str | bytes | None] = lambda path: path
    redirect: str = ""
    url: str = ""

    @property
    def ranges(self) -> list[str | None]:
        """The `Range` of each request."""
        return [headers.get("range") for _, headers in self.asked]


class Handler(BaseHTTPRequestHandler, Generic[State]):
    """Answers the requests to one server, quietly; a subclass has `answer`.

    state: the server's, which the test reads and changes.
    """

    protocol_version = "HTTP/1.1"

    def __init__(self, state: State, *arguments: Any) -> None:
        self.state = state
        super().__init__(*arguments)

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        """Answer a request; `send` leaves the body out for HEAD."""
        raise NotImplementedError

    def send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: int | None = None
    ) -> None:
        """Send a response, its body at the rate of the server.

        cut: the bytes of the body after which the connection breaks.
        """
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = body[:cut]
        try:
            for at in range(0, len(body), 2**16):
                self.wfile.write(body[at : at + 2**16])
                if self.state.rate:
                    time.sleep(2**16 / self.state.rate)
        except OSError:
            self.close_connection = True
        if cut is not None:
            self.close_connection = True


class _FileHandler(Handler[FileServer]):
    def answer(self) -> None:
        state = self.state
        headers = {name.lower(): value for name, value in self.headers.items()}
        state.asked.append((self.path, headers))
        if state.authorization and headers.get("authorization") != state.authorization:
            self.send(401, b"")
            return
        if state.redirect:
            self.send(302, b"", {"Location": state.redirect})
            return
        found = state.route(unquote(urlsplit(self.path).path))
        if isinstance(found, bytes):
            self.send(200, found, {"Content-Type": "application/json"})
            return
        file = state.folder / (found or "").lstrip("/")
        if found is None or not file.is_file():
            self.send(404, b"")
            return
        self._file(file, headers)

    def _file(self, file: Path, headers: dict[str, str]) -> None:
        content = file.read_bytes()
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if (found := re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))) and headers.get("if-range") in (
            None,
            tag,
        ):
            start = int(found[1])
        sent = {"ETag": tag} if self.state.tags else {}
        if start and start >= len(content):
            self.send(416, b"", sent | {"Content-Range": f"bytes */{len(content)}"})
            return
        if start:
            sent["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(206 if start else 200, content[start:], sent, self.state.cut(self.path))


@contextmanager
def serving(state: FileServer, tls: ssl.SSLContext | None = None) -> Iterator[FileServer]:
    """Serve the files on a free port of this machine; `state.url` is the address."""
    with answering(state, _FileHandler, tls):
        yield state


@contextmanager
def answering(
    state: State, handler: type[Handler[State]], tls: ssl.SSLContext | None = None
) -> Iterator[State]:
    """Answer requests on a free port of this machine; `state.url` is the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, state)) as server:
        server.daemon_threads = True
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def program(name: str) -> Path:
    """A program of k8s/local/tools, built from the Go module proxy where it is not yet."""
    done = subprocess.run(
        [ROOT / "k8s/local/programs", name], capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()) / name


@contextmanager
def running(command: Sequence[str | Path], pattern: str, log: Path) -> Iterator[re.Match[str]]:
    """Run a server until the end, from when its log, the file `log`, has `pattern` in it."""
    with log.open("wb") as written, subprocess.Popen(command, stdout=written, stderr=written) as process:
        try:
            end = time.monotonic() + 60
            while not (found := re.search(pattern, log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            yield found
        finally:
            process.terminate()


@contextmanager
def s3(folder: Path, log: Path, key: str, secret: str, *flags: str, host: str = "127.0.0.1") -> Iterator[str]:
    """rclone's S3 server of the folders in `folder`, each a bucket; yields its endpoint."""
    command: list[str | Path] = [
        program("rclone"),
        "serve",
        "s3",
        folder,
        "--addr",
        f"{host}:0",
        "--auth-key",
        f"{key},{secret}",
    ]
    command += ["--config", "/dev/null", "-vv", *flags]
    with running(command, r"Starting s3 server on \[(https?://[\d.]+:\d+)/\]", log) as found:
        yield found[1]


@contextmanager
def registry(
    folder: Path, users: Path | None = None, address: str = "127.0.0.1", certificate: Path | None = None
) -> Iterator[str]:
    """The distribution project's registry over `folder`; yields its host and port.

    certificate: a file with the server's key and certificate, for TLS.
    """
    tls = f", tls: {{certificate: {certificate}, key: {certificate}}}" if certificate else ""
    configuration = f"""
version: 0.1
log: {{level: info}}
storage: {{filesystem: {{rootdirectory: {folder / "registry"}}}}}
http: {{addr: "{address}:0"{tls}}}
"""
    if users:
        configuration += f"auth: {{htpasswd: {{realm: test, path: {users}}}}}\n"
    (folder / "registry.yaml").write_text(configuration)
    log = folder / "registry.log"
    with running(
        [program("registry"), "serve", folder / "registry.yaml"], rf"listening on ({address}:\d+)", log
    ) as found:
        yield found[1]
