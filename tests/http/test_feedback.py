"""`POST /feedback`: clients report the true class of images that were answered before."""

import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from pthserve.http.peers import Peers
from pthserve.intervals import wilson
from pthserve.loading.model import Model

from ..http_service import Service, serving
from ..serving.squares import BLUE, GREEN, RED, png, squares

_numbers = itertools.count(10**6)
"""Metrics are counted for all tests of a process: each model has a digest of its own."""


def model(**fields: Any) -> Model:
    return squares(digest=f"{next(_numbers):064x}", **fields)


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(model(), feedback=4) as started:
        yield started


def asked(service: Service, *colours: tuple[int, int, int], **headers: str) -> str:
    """The id of the answer to a request with so many images."""
    files = [("image", png(colour)) for colour in colours]
    reply = service.client.post("/predict", files=files, headers=headers)
    assert reply.status_code == 200, reply.text
    return reply.headers["x-request-id"]


def report(service: Service, request_id: str, label: object, **fields: object) -> httpx.Response:
    return service.client.post("/feedback", json={"id": request_id, "label": label, **fields})


def test_without_the_setting_there_is_no_such_route(client: httpx.Client) -> None:
    assert client.post("/feedback", json={"id": "1", "label": "red"}).status_code == 404


def test_reports_of_true_classes_make_the_live_accuracy_of_the_model(service: Service) -> None:
    digest = service.client.get("/info").json()["digest"]
    for colour, label, correct in ((RED, "red", True), (GREEN, "green", True), (BLUE, 0, False)):
        reply = report(service, asked(service, colour), label)
        assert reply.status_code == 200, reply.text
        assert (reply.json()["correct"], reply.json()["counted"]) == (correct, True)
        assert reply.json()["digest"] == reply.headers["x-model-digest"] == digest
    assert reply.json()["label"] == "red"
    assert reply.json()["answer"] == "blue"
    assert service.metric(f'pthserve_feedback_total{{digest="{digest}",result="correct"}}') == 2
    assert service.metric(f'pthserve_feedback_total{{digest="{digest}",result="incorrect"}}') == 1
    accuracy = wilson(2, 3)
    assert accuracy is not None
    for bound, value in accuracy._asdict().items():
        name = f'pthserve_feedback_accuracy{{bound="{bound}",digest="{digest}"}}'
        assert service.metric(name) == pytest.approx(value)


def test_the_command_of_the_page_reports_a_class(service: Service) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()
    (command,) = re.findall(r"^    (curl .+)$", page, re.MULTILINE)
    asked(service, RED, **{"x-request-id": "4fd0a1"})
    command = command.replace("https://cats.example", service.url).replace('"cat"', '"red"')
    done = subprocess.run([*shlex.split(command), "-sS"], capture_output=True, check=True)
    assert json.loads(done.stdout)["correct"]


def test_a_second_report_of_an_image_is_not_counted(service: Service) -> None:
    request_id = asked(service, RED)
    assert report(service, request_id, "red").json()["counted"]
    again = report(service, request_id, "green").json()
    assert (again["counted"], again["correct"]) == (False, False)
    digest = again["digest"]
    assert service.metric(f'pthserve_feedback_total{{digest="{digest}",result="correct"}}') == 1
    assert service.metric(f'pthserve_feedback_total{{digest="{digest}",result="incorrect"}}') == 0


def test_each_image_of_a_request_is_reported_by_its_number(service: Service) -> None:
    request_id = asked(service, RED, GREEN)
    assert report(service, request_id, "green", image=1).json()["correct"]
    assert report(service, request_id, "green").json()["image"] == 0
    beyond = report(service, request_id, "green", image=2)
    assert beyond.status_code == 400
    assert "has 2 images" in beyond.json()["error"]


def test_only_the_latest_answers_are_remembered_and_the_error_says_what_may_be_wrong(
    service: Service,
) -> None:
    first, *rest = (asked(service, RED) for _ in range(5))
    forgotten = report(service, first, "red")
    assert forgotten.status_code == 404
    assert first in forgotten.json()["error"]
    assert "older than the latest 4 images" in forgotten.json()["error"]
    assert all(report(service, one, "red").json()["correct"] for one in rest)
    assert report(service, "never-given", "red").status_code == 404


def test_an_id_that_a_client_uses_again_names_its_latest_answer(service: Service) -> None:
    for colour in (RED, GREEN):
        assert asked(service, colour, **{"x-request-id": "mine"}) == "mine"
    assert report(service, "mine", "green").json()["correct"]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"label": "violet"}, "no class violet"),
        ({"label": 3}, "no class 3 among 3"),
        ({"label": -1}, "no class -1 among 3"),
        ({"label": True}, "label"),
        ({"label": 1.5}, "label"),
        ({"label": ["red"]}, "label"),
        ({}, "label"),
        ({"label": "red", "image": -1}, "image"),
        ({"label": "red", "image": "0"}, "image"),
        ({"label": "red", "id": "x" * 129}, "id"),
    ],
    ids=str,
)
def test_a_report_that_cannot_be_true_is_refused_by_name(
    service: Service, fields: dict[str, object], wrong: str
) -> None:
    reply = service.client.post("/feedback", json={"id": asked(service, RED), **fields})
    assert reply.status_code == 400, reply.text
    assert wrong in reply.json()["error"]


def test_answers_over_the_open_inference_protocol_are_remembered_too(service: Service) -> None:
    tensor = {"name": "tensor", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.5] * 3072}
    reply = service.client.post("/v2/models/squares/infer", json={"inputs": [tensor]})
    assert report(service, reply.headers["x-request-id"], 0).status_code == 200


def test_a_report_needs_an_api_key_as_a_prediction_does(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("key\n")
    with serving(model(), feedback=4, api_keys=tmp_path / "keys") as service:
        assert report(service, "any", "red").status_code == 401


def test_the_schema_describes_report_and_answer(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    route = document["paths"]["/feedback"]["post"]
    schema = route["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate({"id": "1", "label": "red", "image": 0}, schema)
    schema = document["components"]["schemas"]["Reported"]
    jsonschema.validate(report(service, asked(service, RED), "red").json(), schema)


@pytest.mark.slow
def test_a_pod_that_did_not_give_the_answer_asks_the_others(tmp_path: Path) -> None:
    """With the key of the client, which the others check themselves."""
    (tmp_path / "keys").write_text("key\n")
    settings: dict[str, Any] = {"feedback": 4, "api_keys": tmp_path / "keys"}
    key = {"x-api-key": "key"}
    with (
        serving(model(), **settings) as other,
        serving(model(), feedback_peers=other.url, **settings) as service,
    ):
        for one in (other, service):
            one.client.headers.update(key)
        request_id = asked(other, RED)
        reply = report(service, request_id, "red")
        assert reply.status_code == 200, reply.text
        digest = other.client.get("/info").json()["digest"]
        assert reply.json()["digest"] == reply.headers["x-model-digest"] == digest
        assert not report(other, request_id, "red").json()["counted"]
        assert report(service, request_id, "violet").status_code == 400
        assert report(service, "never-given", "red").status_code == 404


def test_pods_that_ask_each_other_do_not_do_so_forever() -> None:
    with serving(model(), feedback=4) as service:
        reply = service.client.post(
            "/feedback", json={"id": "1", "label": "red"}, headers={"x-pthserve-forwarded": "1"}
        )
        assert reply.status_code == 404


@pytest.mark.slow
def test_a_pod_that_cannot_be_asked_might_know_the_answer() -> None:
    with serving(model(), feedback=4) as other:
        gone = other.url
    with serving(model(), feedback=4, feedback_peers=gone) as service:
        reply = report(service, "1", "red")
        assert reply.status_code == 503
        assert "not all others could be asked" in reply.json()["error"]


async def test_every_address_of_the_name_is_asked_under_the_name() -> None:
    found = await Peers("http://localhost:8123/cats/")._addresses("/feedback")
    assert ("http://127.0.0.1:8123/cats/feedback", "localhost") in [(str(url), name) for url, name in found]
    secure = await Peers("https://127.0.0.1")._addresses("/feedback")
    assert [(str(url), name) for url, name in secure] == [("https://127.0.0.1/feedback", "127.0.0.1")]
