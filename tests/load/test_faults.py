"""A model of a user's own that raises, finds no memory, hangs, or ends its thread or its process."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch

from ..running import PATIENCE, Running, running
from ..shared import until
from .models import MODULES, image, make, save, state
from .nets import colour

pytestmark = pytest.mark.slow

DEADLINE = 2.0
SLACK = 5.0
"""Seconds that an answer may be late on a machine that others use."""


@contextmanager
def faulty(folder: Path) -> Iterator[Running]:
    flags = ("--engine", "torch", "--deadline", str(DEADLINE))
    with running(
        make(folder / "net", architecture="nets:Faulty"), folder / "log", *flags, modules=MODULES
    ) as service:
        yield service


def ask(service: Running, fault: str | None = None) -> httpx.Response:
    """The answer for an image that has the model do `fault`; it comes in time."""
    began = time.monotonic()
    data = image(1, colour(fault) if fault else None)
    reply = service.client.post("/predict", content=data, headers={"content-type": "image/png"})
    assert time.monotonic() - began < DEADLINE + SLACK
    return reply


def probe(service: Running, path: str = "/livez") -> int:
    return service.client.get(path).status_code


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with faulty(tmp_path_factory.mktemp("faults")) as started:
        yield started


@pytest.mark.parametrize(
    ("fault", "name"),
    [("raises", "RuntimeError"), ("finds no memory", "RuntimeError"), ("recurses", "RecursionError")],
)
def test_a_fault_is_told_by_its_name_alone_and_the_next_request_is_answered(
    service: Running, fault: str, name: str
) -> None:
    reply = ask(service, fault)
    assert reply.status_code == 500
    assert name in reply.json()["error"]
    assert "secret" not in reply.text
    assert probe(service) == 200
    assert ask(service).status_code == 200
    assert service.metric("pthserve_inflight_requests") == 0


def test_a_pause_longer_than_the_deadline_is_told_and_passes(service: Running) -> None:
    assert ask(service, "pauses").status_code == 504
    until(lambda: ask(service).status_code == 200, seconds=PATIENCE)
    assert probe(service) == 200
    assert service.metric("pthserve_inflight_requests") == 0


def test_a_hang_is_told_by_the_probe_keeps_nobody_waiting_and_does_not_keep_the_process(
    tmp_path: Path,
) -> None:
    with faulty(tmp_path) as service:
        assert ask(service, "hangs").status_code == 504
        codes = set()

        def told() -> bool:
            codes.add(ask(service).status_code)
            return probe(service) == 503

        until(told, seconds=PATIENCE)
        assert codes <= {503, 504}
        assert "forward pass" in service.client.get("/livez").json()["error"]
        assert service.metric("pthserve_inflight_requests") == 0
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 2 * DEADLINE + 2 * SLACK


def test_an_engine_s_thread_that_ends_is_told_by_the_probe(tmp_path: Path) -> None:
    with faulty(tmp_path) as service:
        assert ask(service, "ends its thread").status_code in (500, 503, 504)
        until(lambda: probe(service) == 503, seconds=PATIENCE)
        assert "thread" in service.client.get("/livez").json()["error"]
        ask(service)  # it need not succeed, but it comes in time
        assert service.metric("pthserve_inflight_requests") == 0


def test_a_process_that_dies_takes_only_what_was_in_it(tmp_path: Path) -> None:
    with faulty(tmp_path) as service:
        with pytest.raises(httpx.TransportError):
            ask(service, "kills its process")
        assert service.process.wait(PATIENCE) == -signal.SIGKILL


def test_a_new_model_that_hangs_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """Its load goes on beside the traffic, which the old model answers."""
    with faulty(tmp_path) as service:
        folder = tmp_path / "net"
        save(state(2) | {"head.bias": torch.zeros(4)}, folder / "model.pth")
        (folder / "golden.png").write_bytes(image(1, colour("hangs")))
        card = (folder / "model.yaml").read_text()
        (folder / "model.yaml").write_text(f"{card}golden:\n- {{image: golden.png, class_index: 0}}\n")
        with pytest.raises(httpx.ReadTimeout):
            service.client.post("/v2/repository/models/net/load", timeout=2 * DEADLINE)
        assert ask(service).status_code == 200
        assert probe(service) == 200
        assert probe(service, "/readyz") == 200
