"""Every answer of a model names the model: the header X-Model-Digest, whatever the route and the form."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ..http_service import serving
from ..serving.squares import RED, Squares, png, squares

DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(squares(digest=DIGEST), torchserve_api="on", cors_origins="https://shop.example") as service:
        yield service.client


IMAGE: dict[str, Any] = {"files": {"image": png(RED)}}
TENSOR = {"name": "tensor", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.5] * 3072}
REQUESTS: dict[str, dict[str, Any]] = {
    "/predict": IMAGE,
    "/predict?top=1": {"files": [("images", png()), ("images", png())]},
    "/explain": IMAGE,
    "/explain?class=1": {**IMAGE, "headers": {"accept": "application/json"}},
    "/predictions/squares": {"files": {"data": png()}},
    "/v2/models/squares/infer": {"json": {"inputs": [TENSOR]}},
    "/v2/models/squares/versions/1/infer": {
        "json": {"inputs": [TENSOR], "parameters": {"binary_data_output": True}}
    },
}


@pytest.mark.parametrize("path", REQUESTS)
def test_an_answer_names_the_model_that_gave_it(client: httpx.Client, path: str) -> None:
    reply = client.post(path, **REQUESTS[path])
    assert reply.status_code == 200, reply.text
    assert reply.headers.get_list("x-model-digest") == [DIGEST]


@pytest.mark.parametrize("path", ["/info", "/readyz", "/metrics", "/"])
def test_what_is_no_answer_of_a_model_names_none(client: httpx.Client, path: str) -> None:
    assert "x-model-digest" not in client.get(path).headers


def test_an_error_names_no_model() -> None:
    def broken(_: object) -> None:
        raise ValueError("broken")

    engine = Squares()
    with serving(squares(engine, digest=DIGEST)) as service:
        engine.hook = broken
        reply = service.client.post("/predict", **IMAGE)
        assert reply.status_code == 500
        assert "x-model-digest" not in reply.headers


def test_a_page_of_another_origin_may_read_it(client: httpx.Client) -> None:
    reply = client.post("/predict", **IMAGE, headers={"origin": "https://shop.example"})
    assert "X-Model-Digest" in reply.headers["access-control-expose-headers"]
