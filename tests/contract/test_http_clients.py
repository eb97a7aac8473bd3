"""HTTP clients of other languages post an image, each in the ways that it has."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.http_service import PATIENCE, Service, serving
from tests.http_wire import connect, head, read
from tests.serving.squares import GREEN, png

CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as started:
        yield started


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "green.png"
    path.write_bytes(png(GREEN))
    return path


def has(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def run(*command: str | Path, folder: Path, **environment: str) -> list[Any]:
    """The answers that `command` prints, a line each."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def are_green(answers: list[Any], number: int) -> None:
    assert [answer.get("label", answer) for answer in answers] == ["green"] * number


@pytest.mark.slow
@has("javac")
def test_java(service: Service, image: Path, tmp_path: Path) -> None:
    run("javac", "-d", tmp_path, CLIENTS / "Post.java", folder=tmp_path)
    answers = run("java", "-cp", tmp_path, "Post", f"{service.url}/predict", image, folder=tmp_path)
    are_green(answers, 4)


@pytest.mark.slow
@has("go")
def test_go(service: Service, image: Path, tmp_path: Path) -> None:
    command = ("go", "run", CLIENTS / "post.go", f"{service.url}/predict", image)
    are_green(run(*command, folder=tmp_path, GOFLAGS="-mod=mod", GO111MODULE="off"), 4)


@has("node")
def test_node(service: Service, image: Path, tmp_path: Path) -> None:
    are_green(run("node", CLIENTS / "post.mjs", f"{service.url}/predict", image, folder=tmp_path), 5)


@has("curl")
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
@pytest.mark.parametrize(
    "body",
    [
        ("-F", "image=@green.png"),
        ("--data-binary", "@green.png", "-H", "Content-Type: image/png"),
        ("--data-binary", "@green.png", "-H", "Content-Type: image/png", "-H", "Expect: 100-continue"),
        ("-T", "-", "-X", "POST", "-H", "Content-Type: image/png"),
    ],
    ids=["form", "raw", "expect", "chunked"],
)
def test_curl(service: Service, image: Path, version: str, body: tuple[str, ...]) -> None:
    if version == "--http2" and "HTTP2" not in subprocess.check_output(["curl", "-V"], text=True):
        pytest.skip("this curl is built without HTTP/2")
    if version == "--http1.0" and body[0] == "-T":
        pytest.skip("HTTP/1.0 has no chunks")
    url = f"{service.url}/predict"
    with image.open("rb") as content:
        done = subprocess.run(
            ["curl", "-sS", version, "-w", "\n%{num_connects}\n", *body, url, url],
            stdin=content,
            cwd=image.parent,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    first, connects, *_ = done.stdout.splitlines()
    are_green([json.loads(first)], 1)
    assert connects == "1"


@has("curl")
def test_curl_takes_one_connection_for_many_forms(service: Service, image: Path) -> None:
    url = f"{service.url}/predict"
    command = ["curl", "-sS", "--http2", "-w", "\n%{num_connects}\n", "-F", "image=@green.png", *[url] * 4]
    done = subprocess.run(command, cwd=image.parent, capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.splitlines()
    are_green([json.loads(line) for line in lines[::2]], 4)
    assert lines[1::2] == ["1", "0", "0", "0"]


@has("curl")
def test_curl_reads_why_a_large_body_is_refused(service: Service, tmp_path: Path) -> None:
    """It asks before it sends that much."""
    (tmp_path / "large").write_bytes(bytes(25 * 2**20))
    command = ["curl", "-sS", "-F", "image=@large", "-w", "\n%{http_code}", f"{service.url}/predict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    answer, code = done.stdout.splitlines()
    assert code == "413"
    assert "20971520 bytes" in json.loads(answer)["error"]


def test_dotnet_as_it_is_on_the_wire(service: Service) -> None:
    """Its MultipartFormDataContent: quoted boundary, chunks where the length is not known, Expect."""
    boundary = "5f6c2b6e-3d4a-4a86-9d6a-2f9f0b1c7d11"
    form = (
        f"--{boundary}\r\nContent-Type: image/png\r\n"
        "Content-Disposition: form-data; name=image; filename=a.png; filename*=utf-8''a.png\r\n\r\n"
    ).encode() + png(GREEN)
    form += f"\r\n--{boundary}--\r\n".encode()
    kind = f'multipart/form-data; boundary="{boundary}"'
    with connect(service) as client:
        client.sendall(head(content_type=kind, content_length=len(form), expect="100-continue"))
        assert received(client) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(form)
        assert json.loads(read(client).body)["label"] == "green"
        client.sendall(head(content_type=kind, transfer_encoding="chunked", expect="100-continue"))
        assert received(client) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for start in range(0, len(form), 64):
            piece = form[start : start + 64]
            client.sendall(b"%X\r\n%s\r\n" % (len(piece), piece))
        client.sendall(b"0\r\n\r\n")
        assert json.loads(read(client).body)["label"] == "green"


def received(client: socket.socket) -> bytes:
    """An interim answer."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += client.recv(1)
    return data


def test_httpx_keeps_its_connection(service: Service) -> None:
    with httpx.Client(base_url=service.url, timeout=PATIENCE) as client:
        answers = [client.post("/predict", files={"image": png(GREEN)}) for _ in range(3)]
        are_green([answer.json() for answer in answers], 3)
        assert (
            len({answer.extensions["network_stream"].get_extra_info("client_addr") for answer in answers})
            == 1
        )
