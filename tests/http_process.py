"""The service as a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from .http_service import PATIENCE
from .shared import metric

SCRIPT = Path(__file__).with_name("squares_service.py")


class Process:
    """A child that serves squares, and a client for it."""

    def __init__(self, settings: dict[str, Any], each: float, loading: float) -> None:
        arguments: list[str | Path] = [sys.executable, SCRIPT, json.dumps(settings), str(each), str(loading)]
        self.child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.child.stdout is not None
        self.ports = json.loads(self.child.stdout.readline())
        self.port = self.ports["http"]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE)

    def ask(self, path: str) -> httpx.Response | None:
        """The answer to a new connection, or None where there is nobody."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE)
        except httpx.TransportError:
            return None

    def ready(self) -> bool:
        response = self.ask("/readyz")
        return response is not None and response.status_code == 200

    def metric(self, name: str) -> float:
        """The value of a sample, as in `conftest.metric`."""
        return metric(self.client, name)

    def end(self) -> tuple[int, str]:
        """Exit code and log, once it has ended."""
        _, log = self.child.communicate(timeout=PATIENCE)
        return self.child.returncode, log


@contextmanager
def process(each: float = 0.0, loading: float = 0.0, **settings: Any) -> Iterator[Process]:
    started = Process(settings, each, loading)
    try:
        yield started
    finally:
        started.client.close()
        started.child.kill()
        started.child.communicate()
