"""The real server, on free ports, in a thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from pthserve.loading.model import Model
from pthserve.server import Server
from pthserve.settings import Settings

from .serving.squares import squares
from .shared import metric, until

PATIENCE = 30.0
"""Seconds after which a condition that does not come is a failure."""


class Service:
    """A server in a thread, and a client for it."""

    def __init__(self, settings: Settings, load: Callable[[], Model]) -> None:
        self.server = Server(settings, load)
        self.port = self.server.ports["http"]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.server.run()
        except BaseException as error:
            self.error = error

    def wait_until_ready(self) -> None:
        until(lambda: self.client.get("/readyz").status_code == 200, "readiness")

    def metric(self, name: str) -> float:
        """The value of a sample, as in `metric`."""
        return metric(self.client, name)

    def stop(self) -> None:
        self.client.close()
        for _ in range(2):
            self.server.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the server did not stop"


@contextmanager
def serving(load: Model | Callable[[], Model] | None = None, **settings: Any) -> Iterator[Service]:
    """A service that is ready; or, where `load` is a function, that is still loading."""
    chosen = {"port": 0, "drain_seconds": 0.0, "log_level": "error", **settings}
    given = load or squares()
    service = Service(Settings(**chosen), (lambda: given) if isinstance(given, Model) else given)
    try:
        if isinstance(given, Model):
            service.wait_until_ready()
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """A service with the squares' model, for tests that leave it as it is."""
    with serving() as started:
        yield started


@pytest.fixture
def client(service: Service) -> httpx.Client:
    return service.client
