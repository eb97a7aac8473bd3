"""The routes of the Hugging Face Hub that downloads use, answered from repositories in a folder."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .servers import Handler, answering

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The repositories `folder/OWNER/NAME`, each with one commit, which is `main` and the tag `v1`.

    token: what it asks for. As the Hub does, it sends large files, those of `large` bytes or more, by a
    redirect to another host. failures: requests that are answered with 503 first. altered: whether the
    other host sends other bytes. asked: host, path and Authorization of each request.
    """

    folder: Path
    token: str | None = None
    large: int = 1000
    failures: int = 0
    altered: bool = False
    rate: float | None = None
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""


class _Handler(Handler[Hub]):
    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        self.state.asked.append((self.headers.get("Host", ""), path, authorization))
        if self.state.failures:
            self.state.failures -= 1
            self.send(503, b"")
        elif path.startswith("/cdn/"):
            self._file(self.state.folder / path.removeprefix("/cdn/"))
        elif self.state.token and authorization != f"Bearer {self.state.token}":
            self.send(401, b'{"error": "Unauthorized"}', {"X-Error-Code": "RepoNotFound"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], found[2], found[3])
        else:
            self.send(404, b"")

    def _info(self, repository: str, revision: str) -> None:
        folder = self.state.folder / repository
        if not folder.is_dir():
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        if revision not in ("main", "v1", COMMIT):
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [self._sibling(folder, file) for file in sorted(folder.rglob("*")) if file.is_file()]
        values = {
            "id": repository,
            "modelId": repository,
            "sha": COMMIT,
            "private": False,
            "siblings": siblings,
        }
        self.send(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _sibling(self, folder: Path, file: Path) -> dict[str, object]:
        content = file.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        lfs = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        return {
            "rfilename": file.relative_to(folder).as_posix(),
            "size": len(content),
            "blobId": hashlib.sha1(content).hexdigest(),
            **({"lfs": lfs} if len(content) >= self.state.large else {}),
        }

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        file = self.state.folder / repository / name
        if revision != COMMIT or not file.is_file():
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif file.stat().st_size >= self.state.large:
            elsewhere = self.state.url.replace("127.0.0.1", "localhost")
            self.send(
                302, b"", {"Location": f"{elsewhere}/cdn/{repository}/{name}?Signature=secretsignature"}
            )
        else:
            self._file(file)

    def _file(self, file: Path) -> None:
        content = file.read_bytes()
        if self.state.altered and self.path.startswith("/cdn/"):
            content = content[:-1] + b"x"
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(206 if start else 200, content[start:], headers)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port of this machine; `hub.url` is what HF_ENDPOINT is set to."""
    with answering(hub, _Handler):
        yield hub
