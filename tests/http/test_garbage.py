"""What was held for a request is freed with its answer, and does not wait for the garbage collector.

It comes by the later the more it has looked at before; until then each circle of references around a broken
image keeps a picture.
"""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from pthserve.errors import PthserveError
from pthserve.serving import batcher

from ..http_service import Service, serving
from ..serving.squares import Squares, png, squares
from ..shared import until

HELD = (RequestResponseCycle, PthserveError, Image.Image)
"""What leads to a body, to arrays, and to pixels."""
TIMES = 5


@pytest.fixture(scope="module")
def small() -> Iterator[Service]:
    with serving(max_body=10_000, max_pixels=200_000) as service:
        yield service


@contextmanager
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def held() -> Counter[type]:
    return Counter(type(one) for one in gc.get_objects() if isinstance(one, HELD))


def asked(path: str, image: bytes, **options: Any) -> dict[str, Any]:
    return {"method": "POST", "url": path, "files": {"image": image}, **options}


def infer(data: list[object]) -> dict[str, Any]:
    one = {"name": "bytes", "datatype": "BYTES", "shape": [len(data)], "data": data}
    return {"method": "POST", "url": "/v2/models/squares/infer", "json": {"inputs": [one]}}


def leaves_nothing(service: Service, code: int, request: dict[str, Any]) -> None:
    assert service.client.request(**request).status_code == code
    with uncollected():
        before = held()
        for _ in range(TIMES):
            assert service.client.request(**request).status_code == code
        until(lambda: not held() - before, "an end of what was held")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "sent"),
    [
        (200, asked("/predict", png())),
        (
            200,
            {"method": "POST", "url": "/predict", "content": png(), "headers": {"content-type": "image/png"}},
        ),
        (400, asked("/predict", png(), headers={"x-request-timeout": "soon"})),
        (400, {"method": "POST", "url": "/predict", "files": {"picture": png()}}),
        (413, asked("/predict", png(size=(500, 401)))),
        (413, asked("/predict", bytes(10_001))),
        (415, asked("/predict", b"no image at all")),
        (422, asked("/predict", png()[:60])),
        (200, asked("/explain", png())),
        (422, asked("/explain", png()[:60])),
        (400, asked("/explain?class=3", png())),
        (400, infer([1])),
        (404, {"method": "GET", "url": "/nowhere"}),
    ],
    ids=lambda value: "" if isinstance(value, int) else None,
)
def test_nothing_is_left_of_a_request(small: Service, code: int, sent: dict[str, Any]) -> None:
    leaves_nothing(small, code, sent)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_nothing_is_left_of_a_forward_pass_that_failed(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(batcher.log, "disabled", True)  # pytest keeps what is logged, and tracebacks with it

    def fail(_: Any) -> None:
        raise MemoryError

    engine = Squares()
    with serving(squares(engine)) as service:
        engine.hook = fail
        leaves_nothing(service, 500, asked(path, png()))


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_nothing_is_left_of_a_request_that_came_too_late(path: str) -> None:
    engine = Squares()
    with serving(squares(engine)) as service:
        engine.seconds = 0.2
        leaves_nothing(service, 504, asked(path, png(), headers={"x-request-timeout": "0.1"}))


@pytest.mark.slow
def test_a_server_that_has_ended_leaves_nothing_that_the_collector_would_not_look_at() -> None:
    with serving():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
