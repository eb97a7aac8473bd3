"""The routes and answers of TorchServe's image_classifier, as its clients know them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from ..http_service import serving
from ..serving.squares import GREEN, Gate, png, squares

PREDICTIONS = "/predictions/squares"


@pytest.fixture(scope="module")
def torchserve() -> Iterator[httpx.Client]:
    with serving(torchserve_api="on") as service:
        yield service.client


def test_without_the_setting_there_are_no_such_routes(client: httpx.Client) -> None:
    assert client.get("/ping").status_code == 404
    assert client.post(PREDICTIONS, files={"data": png()}).status_code == 404
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "predictions" in path]


def test_a_healthy_service_says_so(torchserve: httpx.Client) -> None:
    reply = torchserve.get("/ping")
    assert (reply.status_code, reply.json()) == (200, {"status": "Healthy"})


def test_a_service_that_is_loading_is_unhealthy() -> None:
    gate = Gate()
    with serving(lambda: (gate(None), squares())[1], torchserve_api="on") as loading:
        try:
            reply = loading.client.get("/ping")
            assert (reply.status_code, reply.json()) == (500, {"status": "Unhealthy"})
            reply = loading.client.post(PREDICTIONS, files={"data": png()})
            assert (reply.status_code, reply.json()["type"]) == (503, "ServiceUnavailableException")
        finally:
            gate.opened.set()


@pytest.mark.parametrize("path", [PREDICTIONS, f"{PREDICTIONS}/1"])
@pytest.mark.parametrize(
    ("method", "sent"),
    [
        ("POST", {"files": {"data": png(GREEN)}}),
        ("POST", {"content": png(GREEN), "headers": {"content-type": "image/png"}}),
        ("POST", {"content": png(GREEN), "headers": {"content-type": "application/octet-stream"}}),
        ("PUT", {"content": png(GREEN)}),  # as `curl -T` sends it
    ],
)
def test_an_image_is_answered_with_its_labels_best_first(
    torchserve: httpx.Client, path: str, method: str, sent: dict[str, Any]
) -> None:
    reply = torchserve.request(method, path, **sent)
    assert reply.status_code == 200
    assert next(iter(reply.json())) == "green"
    assert reply.json().keys() == {"red", "green", "blue"}
    top = torchserve.post("/predict", files={"image": png(GREEN)}).json()["top"]
    assert list(reply.json().items()) == [(best["label"], best["probability"]) for best in top]


@pytest.mark.parametrize(
    ("path", "code", "kind"),
    [
        ("/predictions/dogs", 404, "ModelNotFoundException"),
        (f"{PREDICTIONS}/7", 404, "ModelVersionNotFoundException"),
    ],
)
def test_another_model_or_version_is_not_found(
    torchserve: httpx.Client, path: str, code: int, kind: str
) -> None:
    reply = torchserve.post(path, files={"data": png()})
    assert reply.status_code == code
    assert reply.json().keys() == {"code", "type", "message"}
    assert (reply.json()["code"], reply.json()["type"]) == (code, kind)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({"files": {"image": png()}}, 400),
        ({"files": [("data", png()), ("data", png())]}, 400),
        ({"files": {"data": b"no image"}}, 415),
        ({"files": {"data": png()[:60]}}, 422),
        ({"files": {"data": b"x" * 20971521}}, 413),
        ({}, 400),
    ],
)
def test_a_bad_request_is_told_in_the_form_of_torchserve(
    torchserve: httpx.Client, sent: dict[str, Any], code: int
) -> None:
    reply = torchserve.post(PREDICTIONS, **sent)
    assert reply.status_code == code
    if code != 413:  # which is refused by its headers, before any route
        assert (reply.json()["code"], reply.json()["type"]) == (code, "BadRequestException")
        assert reply.json()["message"]


def test_predictions_need_a_key_and_the_probe_does_not(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alpha-key\n")
    with serving(torchserve_api="on", api_keys=tmp_path / "keys") as service:
        assert service.client.get("/ping").status_code == 200
        refused = service.client.post(PREDICTIONS, files={"data": png()})
        assert (refused.status_code, refused.json()["code"]) == (401, 401)
        assert refused.headers["www-authenticate"] == "Bearer"
        key = {"X-API-Key": "alpha-key"}
        assert service.client.post(PREDICTIONS, files={"data": png()}, headers=key).status_code == 200


def test_the_answers_are_as_the_schema_says(torchserve: httpx.Client) -> None:
    schema = torchserve.get("/openapi.json").json()
    responses = schema["paths"]["/predictions/{model}"]["post"]["responses"]
    for reply, name in (
        (torchserve.post(PREDICTIONS, files={"data": png()}), "200"),
        (torchserve.post("/predictions/dogs", files={"data": png()}), "4XX"),
    ):
        content = responses[name]["content"]["application/json"]
        jsonschema.validate(reply.json(), {**content["schema"], "components": schema["components"]})


def test_requests_are_counted_by_their_route(torchserve: httpx.Client) -> None:
    torchserve.post(PREDICTIONS, files={"data": png()})
    text = torchserve.get("/metrics").text
    assert 'pthserve_requests_total{code="200",route="/predictions/{model}"}' in text
