"""The routes of the Hugging Face Hub that downloads use, answered from repositories in a folder."""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The repositories `folder/OWNER/NAME`, each with one commit, which is `main` and the tag `v1`.

    token: what it asks for. As the Hub does, it sends large files, those of `large` bytes or more, by a
    redirect to another host. failures: requests that are answered with 503 first. altered:
    whether the other host sends other bytes. asked: host, path and
    Authorization.
    """

    folder: Path
    token: str | None = None
    large: int = 1000
    failures: int = 0
    altered: bool = False
    rate: float | None = None
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: object) -> None:
        self.hub = hub
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        self.hub.asked.append((self.headers.get("Host", ""), path, authorization))
        if self.hub.failures:
            self.hub.failures -= 1
            self._answer(503, b"")
        elif path.startswith("/cdn/"):
            self._file(self.hub.folder / path.removeprefix("/cdn/"))
        elif self.hub.token and authorization != f"Bearer {self.hub.token}":
            self._answer(401, b'{"error": "Unauthorized"}', {"X-Error-Code": "RepoNotFound"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], found[2], found[3])
        else:
            self._answer(404, b"")

    def _info(self, repository: str, revision: str) -> None:
        folder = self.hub.folder / repository
        if not folder.is_dir():
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        if revision not in ("main", "v1", COMMIT):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [self._sibling(folder, file) for file in sorted(folder.rglob("*")) if file.is_file()]
        values = {
            "id": repository,
            "modelId": repository,
            "sha": COMMIT,
            "private": False,
            "siblings": siblings,
        }
        self._answer(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _sibling(self, folder: Path, file: Path) -> dict[str, object]:
        content = file.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        lfs = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        return {
            "rfilename": file.relative_to(folder).as_posix(),
            "size": len(content),
            "blobId": hashlib.sha1(content).hexdigest(),
            **({"lfs": lfs} if len(content) >= self.hub.large else {}),
        }

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        file = self.hub.folder / repository / name
        if revision != COMMIT or not file.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif file.stat().st_size >= self.hub.large:
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
            self._answer(
                302, b"", {"Location": f"{elsewhere}/cdn/{repository}/{name}?Signature=secretsignature"}
            )
        else:
            self._file(file)

    def _file(self, file: Path) -> None:
        content = file.read_bytes()
        if self.hub.altered and self.path.startswith("/cdn/"):
            content = content[:-1] + b"x"
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._answer(206 if start else 200, content[start:], headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for at in range(0, len(body), 2**16):
            self.wfile.write(body[at : at + 2**16])
            if self.hub.rate:
                time.sleep(2**16 / self.hub.rate)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port of this machine; `hub.url` is what HF_ENDPOINT is set to."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub)) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
