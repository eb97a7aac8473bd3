"""What the service is made of: listed by hash, and held against what is known to be wrong with it."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
KINDS = ("slim", "batch", "full")


def pinned(lock: str) -> set[tuple[str, str]]:
    """Names and versions; of some there are several, for several versions of Python."""
    return set(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", (ROOT / lock).read_text(), re.MULTILINE))


@pytest.mark.parametrize("kind", KINDS)
def test_every_requirement_is_pinned_by_hash(kind: str) -> None:
    text = (ROOT / f"requirements-{kind}.lock").read_text()
    entries = re.split(r"\n(?=[a-z0-9])", text.strip())
    assert len(entries) == len(pinned(f"requirements-{kind}.lock"))
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


@pytest.mark.slow
def test_the_bills_list_what_the_locks_pin_with_their_hashes_and_are_the_same_each_time() -> None:
    def bills() -> list[bytes]:
        subprocess.run([ROOT / "scripts" / "sbom"], check=True, capture_output=True)
        return [(ROOT / "build" / f"sbom-{kind}.json").read_bytes() for kind in KINDS]

    first = bills()
    assert bills() == first
    for text, kind in zip(first, KINDS, strict=True):
        bill = json.loads(text)
        assert bill["bomFormat"] == "CycloneDX"
        assert bill["metadata"]["component"]["name"] == "pthserve"
        found = {(part["name"], part["version"]) for part in bill["components"]}
        assert found == pinned(f"requirements-{kind}.lock")
        for part in bill["components"]:
            assert any(
                each["alg"] == "SHA-256"
                for reference in part["externalReferences"]
                for each in reference["hashes"]
            )


@contextmanager
def database(answer: dict[str, Any]) -> Iterator[str]:
    """A vulnerability database that says `answer` of everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


def audit(url: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [ROOT / "scripts" / "audit", "--osv-url", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_audit_finds_what_is_known_and_else_succeeds() -> None:
    with database({}) as url:
        done = audit(url)
        assert (done.returncode, "No known vulnerabilities" in done.stdout) == (0, True), done.stdout
    flaw = {
        "id": "PYSEC-1",
        "modified": "2026-01-01T00:00:00Z",
        "published": "2026-01-01T00:00:00Z",
        "details": "bad",
        "affected": [{"package": {"name": "pillow", "ecosystem": "PyPI"}, "ranges": []}],
    }
    with database({"vulns": [flaw]}) as url:
        done = audit(url)
        assert (done.returncode, "PYSEC-1" in done.stdout) == (1, True), done.stdout


@pytest.mark.slow
def test_an_audit_that_reaches_nobody_says_that_it_was_skipped() -> None:
    done = audit("http://127.0.0.1:9/v1/query")
    assert (done.returncode, done.stdout[:8]) == (0, "skipped:"), done.stdout
