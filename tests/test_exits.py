"""How the process ends: with which code, and never later than it says, whoever reads what it writes."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from pthserve import exits
from pthserve.errors import CardError, GoldenError, NotReady, PthserveError

from .packs import tiny_pack
from .running import PATIENCE

pytestmark = pytest.mark.slow

PIPE = 4096
"""Bytes that a pipe of one page holds."""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pack(tmp_path_factory.mktemp("model") / "packed").folder


def test_each_kind_of_error_has_its_code() -> None:
    errors = (PthserveError("x"), NotReady("x"), CardError("x"), GoldenError("x"))
    assert [exits.code(error) for error in errors] == [1, 1, 3, 4]


# --- a port that is taken ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        ("--port", "TAKEN"),
        ("--port", "TAKEN", "--grpc-port", "0"),
        ("--port", "0", "--metrics-port", "TAKEN"),
        ("--port", "0", "--grpc-port", "TAKEN"),
    ],
    ids=" ".join,
)
def test_a_port_that_is_taken_is_a_sentence_and_exit_code_1(pack: Path, flags: tuple[str, ...]) -> None:
    """Three times: whether a thread of the load still runs at the end differs from run to run."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        chosen = [port if flag == "TAKEN" else flag for flag in flags]
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-m", "pthserve", "serve", pack, *chosen],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            assert (done.returncode, done.stdout) == (1, ""), done.stderr
            assert port in done.stderr
            assert "choose another" in done.stderr
            lines = [line for line in done.stderr.splitlines() if "add_port.cc" not in line]  # gRPC's own
            assert len(lines) == 1, done.stderr


# --- a standard error that nobody reads -------------------------------------------------------------------


@contextmanager
def unread() -> Iterator[int]:
    """Where a pipe of one page is written to, which nobody reads."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE)
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


def until_listening(service: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + PATIENCE
    while service.poll() is None and time.monotonic() < end:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    pytest.fail("the service does not listen")


def test_sigterm_ends_a_service_whose_standard_error_nobody_reads(pack: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with unread() as writing:
        settings = ("--port", str(port), "--drain-seconds", "0", "--deadline", "2")
        service = subprocess.Popen(
            [sys.executable, "-m", "pthserve", "serve", pack, *settings], stderr=writing
        )
        try:
            until_listening(service, port)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
                for _ in range(10 * PIPE // 80):  # a line each, of more than 80 bytes
                    assert client.get("/info").status_code in (200, 503)
            service.send_signal(signal.SIGTERM)
            assert service.wait(PATIENCE / 2) == 0
        finally:
            service.kill()
            service.wait()


def test_an_error_that_nobody_reads_ends_the_process_with_its_code() -> None:
    code = "from pthserve.exits import leave; leave(3, 'x' * 100_000)"
    with unread() as writing:
        assert subprocess.run([sys.executable, "-c", code], stderr=writing, timeout=PATIENCE).returncode == 3


def test_an_error_is_written_whole_before_the_process_ends() -> None:
    code = "from pthserve.exits import leave; print('an answer'); leave(4, 'x' * 100_000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (4, "an answer\n", "x" * 100_000 + "\n")
