"""An engine that raises, runs out of memory or hangs: the answer is clear, and in time."""

from collections.abc import Iterator

import httpx
import pytest

from pthserve.engines.base import Images

from ..http_service import Service, serving
from ..serving.squares import Gate, Squares, png, squares
from ..shared import until


@pytest.fixture(scope="module")
def engine() -> Squares:
    return Squares()


@pytest.fixture(scope="module")
def faulty(engine: Squares) -> Iterator[Service]:
    with serving(squares(engine), deadline=0.3, log_level="error") as service:
        yield service


def send(service: Service) -> httpx.Response:
    return service.client.post("/predict", files={"image": png()})


@pytest.mark.parametrize("error", [RuntimeError("a secret of the library"), MemoryError()])
def test_an_engine_that_raises_is_told_without_its_secrets_and_the_next_request_is_answered(
    engine: Squares, faulty: Service, error: Exception
) -> None:
    def fail(_: Images) -> None:
        raise error

    engine.hook = fail
    reply = send(faulty)
    assert reply.status_code == 500
    assert type(error).__name__ in reply.json()["error"]
    assert "secret" not in reply.text
    engine.hook = None
    assert send(faulty).status_code == 200
    assert faulty.client.get("/livez").status_code == 200


@pytest.mark.slow
def test_an_engine_that_hangs_keeps_nobody_waiting_and_is_told_until_it_moves_again(
    engine: Squares, faulty: Service
) -> None:
    gate = Gate()
    engine.hook = gate
    assert faulty.client.get("/livez").status_code == 200
    assert send(faulty).status_code == 504
    codes = set()

    def dead() -> bool:
        codes.add(send(faulty).status_code)
        return faulty.client.get("/livez").status_code == 503

    until(dead, "a probe that fails")
    assert codes <= {503, 504}
    assert "forward pass" in faulty.client.get("/healthz").json()["error"]
    assert faulty.metric("pthserve_inflight_requests") == 0
    engine.hook = None
    gate.opened.set()
    until(lambda: faulty.client.get("/livez").status_code == 200, "a probe that succeeds")
    until(lambda: send(faulty).status_code == 200, "an answer")
