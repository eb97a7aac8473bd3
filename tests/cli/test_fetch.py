"""fetch: a weights file from an address, whole and checked, or not at all."""

import hashlib
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pthserve.cli import fetch as module
from pthserve.errors import WeightsError
from pthserve.options import ModelOptions
from pthserve.sources import transfer

CONTENT = random.Random(7).randbytes(3 * 2**20 + 5)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """An HTTP server on this machine, and what it does and has seen."""

    content: bytes = CONTENT
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)
    """Bytes after which the connection is cut, one entry a request."""
    codes: list[int] = field(default_factory=list)
    """Status codes to answer first."""
    redirect: str = ""
    asked: list[str | None] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    api_keys: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            state.authorizations.append(self.headers.get("Authorization"))
            state.api_keys.append(self.headers.get("X-API-Key"))
            if state.codes:
                self.send_error(state.codes.pop(0))
                return
            if state.redirect:
                self.send_response(302)
                self.send_header("Location", state.redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int(re.findall(r"\d+", wanted)[0]) if wanted and state.ranges else 0
            if start and start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}"
                )
            self.end_headers()
            self.wfile.write(body[: state.breaks.pop(0)] if state.breaks else body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{listening.server_port}/models/a.pth"
        yield state
        listening.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSES", (0, 0, 0))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "models" / "a.pth"


def fetch(url: str, output: Path, sha256: str | None, **options: Any) -> None:
    module.fetch(url, output, ModelOptions(sha256=sha256), **options)


def _part(server: Server, output: Path) -> Path:
    """Where what has arrived of the file is kept."""
    address = hashlib.sha256(server.url.encode()).hexdigest()[:32]
    part = output.with_name(".a.pth.fetch") / "downloads" / address / "incoming" / "a.pth.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    return part


def test_the_file_arrives_whole(server: Server, output: Path) -> None:
    fetch(server.url, output, SHA256)
    assert output.read_bytes() == CONTENT
    assert list(output.parent.iterdir()) == [output]


def test_a_file_that_is_there_and_right_is_not_fetched(server: Server, output: Path) -> None:
    output.parent.mkdir()
    output.write_bytes(CONTENT)
    fetch(server.url, output, SHA256)
    assert not server.asked


def test_a_file_that_is_there_and_wrong_is_replaced(server: Server, output: Path) -> None:
    output.parent.mkdir()
    output.write_bytes(b"old")
    fetch(server.url, output, SHA256)
    assert output.read_bytes() == CONTENT


def test_a_cut_connection_is_taken_up_where_it_broke(server: Server, output: Path) -> None:
    server.breaks = [2**20, 2**20]
    fetch(server.url, output, SHA256)
    assert output.read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={2**20}-", f"bytes={2 * 2**20}-"]


def test_the_next_run_goes_on_with_what_the_last_one_left(server: Server, output: Path) -> None:
    output.parent.mkdir()
    _part(server, output).write_bytes(CONTENT[:1000])
    fetch(server.url, output, SHA256)
    assert output.read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_a_whole_part_is_only_checked(server: Server, output: Path) -> None:
    output.parent.mkdir()
    _part(server, output).write_bytes(CONTENT)
    fetch(server.url, output, SHA256)
    assert output.read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_is_begun_anew(server: Server, output: Path) -> None:
    output.parent.mkdir()
    _part(server, output).write_bytes(CONTENT + b"more")
    fetch(server.url, output, SHA256)
    assert output.read_bytes() == CONTENT


def test_a_part_of_another_file_is_begun_anew(server: Server, output: Path) -> None:
    output.parent.mkdir()
    _part(server, output).write_bytes(b"x" * 1000)
    fetch(server.url, output, SHA256)
    assert output.read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", None]


def test_a_server_without_ranges_sends_it_all_again(server: Server, output: Path) -> None:
    server.ranges = False
    server.breaks = [2**20]
    fetch(server.url, output, SHA256)
    assert output.read_bytes() == CONTENT


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_passing_refusal_is_sat_out(code: int, server: Server, output: Path) -> None:
    server.codes = [code, code]
    fetch(server.url, output, SHA256)
    assert output.read_bytes() == CONTENT


def test_a_lasting_refusal_is_told(server: Server, output: Path) -> None:
    server.codes = [503] * 10
    with pytest.raises(
        WeightsError, match=r"a\.pth cannot be downloaded: the server responds with 503 Service Unavailable"
    ):
        fetch(server.url, output, SHA256)
    assert len(server.asked) == 4


@pytest.mark.parametrize(("code", "phrase"), [(401, "Unauthorized"), (404, "Not Found")])
def test_a_final_refusal_is_not_repeated(code: int, phrase: str, server: Server, output: Path) -> None:
    server.codes = [code]
    with pytest.raises(WeightsError, match=rf"a\.pth responds with {code} {phrase}"):
        fetch(server.url, output, SHA256)
    assert len(server.asked) == 1


def test_another_file_than_the_pinned_one_leaves_nothing(server: Server, output: Path) -> None:
    server.content = b"not the weights"
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(WeightsError, match=rf"its SHA-256 is {found}, not {SHA256}\. Check the address"):
        fetch(server.url, output, SHA256)
    assert not list(output.parent.iterdir())


def test_credentials_are_sent(server: Server, output: Path) -> None:
    fetch(server.url, output, SHA256, headers=[(b"Authorization", b"Bearer key")])
    assert server.authorizations == ["Bearer key"]


def test_credentials_do_not_follow_a_redirect_to_another_host(server: Server, output: Path) -> None:
    server.redirect = server.url.replace("127.0.0.1", "localhost")
    with pytest.raises(WeightsError, match="redirects"):
        fetch(server.url, output, SHA256, headers=[(b"Authorization", b"Bearer key")])
    assert server.authorizations[0] == "Bearer key"
    assert server.authorizations[1] is None


def test_no_header_follows_a_redirect_to_another_host(server: Server, output: Path) -> None:
    server.redirect = server.url.replace("127.0.0.1", "localhost")
    with pytest.raises(WeightsError, match="redirects"):
        fetch(server.url, output, SHA256, headers=[(b"X-API-Key", b"key")])
    assert server.api_keys[0] == "key"
    assert not any(server.api_keys[1:])


def test_a_redirect_on_the_same_host_keeps_the_headers(server: Server, output: Path) -> None:
    server.redirect = "/elsewhere"
    with pytest.raises(WeightsError, match="redirects"):
        fetch(server.url, output, SHA256, headers=[(b"X-API-Key", b"key")])
    assert set(server.api_keys) == {"key"}


def test_an_error_does_not_tell_the_secrets_of_an_address(server: Server, output: Path) -> None:
    server.codes = [404]
    secret = server.url.replace("//", "//user:word@") + "?signature=abc"
    with pytest.raises(WeightsError) as caught:
        fetch(secret, output, SHA256)
    assert "word" not in str(caught.value)
    assert "signature" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("models.example/a.pth", "it is a path, not an address"),
        ("ftp://models.example/a.pth", "ftp:// is not supported"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, why: str, output: Path) -> None:
    with pytest.raises(WeightsError, match=why):
        fetch(url, output, SHA256)


def test_nobody_listening_is_told(output: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        fetch("http://127.0.0.1:1/a.pth", output, SHA256)


def test_a_folder_that_cannot_be_written_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"cannot be stored in .*: (Not a directory|File exists)"):
        fetch(server.url, tmp_path / "file" / "a.pth", SHA256)


def test_progress_counts_up_to_the_whole(server: Server, output: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    server.breaks = [2**20]
    fetch(server.url, output, SHA256, progress=lambda there, total: seen.append((there, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
