"""What tests share: the demo models, made once, and real services."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "weights"


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests that can be made longer take."""
    parser.addoption("--fuzz", type=int, default=10_000, metavar="N", help="broken requests to send")
    parser.addoption("--fuzz-seed", type=int, metavar="N", help="of a run that is to be repeated")
    parser.addoption("--soak", type=float, default=120, metavar="S", help="seconds of load in one run")


def _made(folder: Path, weights: str, script: str) -> Path:
    """`folder`, after its script made the weights if they were not there; one process at a time."""
    with (folder / "making.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / weights).exists():
            subprocess.run([sys.executable, folder / script], check=True)
    return folder


@pytest.fixture(scope="session")
def imagenet() -> Path:
    """The folder of the ImageNet demo."""
    return _made(WEIGHTS / "imagenet", "efficientnet-lite0.pth", "make.py")


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder of the digits demo; the first time, its training takes about a minute."""
    return _made(WEIGHTS / "digits", "digits.pth", "train.py")


PATIENCE = 180
"""Seconds in which a service is ready on a busy machine."""


@contextmanager
def serving(model: str | Path, log: Path, *flags: str) -> Iterator[str]:
    """`pthserve serve MODEL FLAGS...` as a process of its own; its address, once it is ready."""
    command = [
        sys.executable,
        "-m",
        "pthserve",
        "serve",
        model,
        "--port",
        "0",
        "--drain-seconds",
        "0",
        *flags,
    ]
    with log.open("wb") as written:
        process = subprocess.Popen(command, stderr=written, env={**os.environ, "PTHSERVE_TUNE_BUDGET": "0"})
    try:
        end = time.monotonic() + PATIENCE
        while not _ready(log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield _ready(log.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()


def _ready(log: str) -> str:
    """The address in a service's log, if it is ready; else nothing."""
    address = re.search(r"listening on (http://\S+)", log)
    try:
        return address[1] if address and httpx.get(f"{address[1]}/readyz").status_code == 200 else ""
    except httpx.TimeoutException:  # a busy machine, and a process that imports torch
        return ""


@pytest.fixture(scope="session")
def demo(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of `demo`."""
    with serving("demo", tmp_path_factory.mktemp("demo") / "log") as address:
        yield address


@pytest.fixture(scope="session")
def served_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of the digits demo."""
    with serving(digits, tmp_path_factory.mktemp("digits") / "log") as address:
        yield address
