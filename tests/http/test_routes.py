"""What the plain routes answer, and that their schema says so."""

from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from fastapi.openapi.utils import get_openapi

from ..http_service import Service, serving
from ..serving.squares import BLUE, GREEN, RED, Gate, Squares, answer, png, squares
from ..shared import until

COLOURS = {"red": RED, "green": GREEN, "blue": BLUE}


def send(client: httpx.Client, image: bytes, **options: Any) -> httpx.Response:
    return client.post("/predict", files={"image": image}, **options)


@pytest.mark.parametrize("label", COLOURS)
@pytest.mark.parametrize("way", ["multipart", "raw"])
def test_an_image_is_classified(client: httpx.Client, way: str, label: str) -> None:
    image = png(COLOURS[label])
    response = (
        send(client, image)
        if way == "multipart"
        else client.post("/predict", content=image, headers={"content-type": "image/png"})
    )
    assert response.status_code == 200
    said = response.json()
    assert said["class_index"] == list(COLOURS).index(label)
    assert said["label"] == label
    np.testing.assert_allclose(said["probabilities"], answer(COLOURS[label]), atol=1e-6)
    assert sum(said["probabilities"]) == pytest.approx(1, abs=1e-6)
    assert said["model"] == {"name": "squares", "version": "1", "digest": "00" * 32}
    assert said["timing"].keys() == {"decode", "queue", "infer", "batch"}


@pytest.mark.parametrize(("asked", "named"), [("", 3), ("?top=1", 1), ("?top=2", 2), ("?top=999999999", 3)])
def test_the_best_few_are_named_best_first(client: httpx.Client, asked: str, named: int) -> None:
    top = client.post(f"/predict{asked}", files={"image": png(GREEN)}).json()["top"]
    assert len(top) == named
    assert (top[0]["class_index"], top[0]["label"]) == (1, "green")
    assert [one["probability"] for one in top] == sorted((one["probability"] for one in top), reverse=True)


@pytest.mark.parametrize("asked", ["0", "-1", "1.5", "x", "", "²", "1e3", "9" * 40])
def test_a_top_that_is_no_count_is_refused(client: httpx.Client, asked: str) -> None:
    response = client.post("/predict", params={"top": asked}, files={"image": png()})
    assert response.status_code == 400
    assert "top" in response.json()["error"]


def test_probes_of_a_ready_service_say_so(client: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        response = client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_info_says_what_is_served_and_how(client: httpx.Client) -> None:
    info = client.get("/info").json()
    told = {"name", "version", "architecture", "num_classes", "digest", "engine", "precision"}
    assert told | {"preprocess", "plan", "golden", "last_reload"} <= info.keys()
    assert info["labels"] == ["red", "green", "blue"]
    assert info["preprocess"]["crop"] == [32, 32]
    (inferred,) = info["inferred"]
    assert inferred == {
        "subject": "architecture",
        "value": "squares",
        "origin": "file",
        "setting": "architecture: squares",
    }
    assert info["plan"]["trials"] == []


@pytest.mark.parametrize("lanes", [1, 2])
def test_info_has_the_number_of_simultaneous_passes_of_the_engine(lanes: int) -> None:
    with serving(squares(Squares(lanes=lanes))) as service:
        assert service.client.get("/info").json()["lanes"] == lanes


def test_info_and_metrics_have_what_the_service_is_planned_for() -> None:
    with serving(planned_rate=31.5, planned_latency=0.05) as planned:
        assert planned.client.get("/info").json()["planned"] == {"rate": 31.5, "latency": 0.05}
        assert planned.metric("pthserve_planned_rate") == 31.5
        assert planned.metric("pthserve_planned_latency_seconds") == 0.05
    with serving() as unplanned:
        assert unplanned.client.get("/info").json()["planned"] == {"rate": None, "latency": None}
        assert unplanned.metric("pthserve_planned_rate") == 0


def test_metrics_come_as_prometheus_text_and_as_openmetrics_when_asked(client: httpx.Client) -> None:
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# EOF" not in plain.text
    asked = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert asked.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert asked.text.endswith("# EOF\n")


def test_requests_are_counted_by_the_route_s_template(service: Service) -> None:
    counted = 'pthserve_requests_total{code="404",route="unmatched"}'
    before = service.metric(counted)
    for path in ("/a", "/b/c", "/%00", "/predict/", "/..%2f..%2fetc/passwd"):
        assert service.client.get(path).status_code == 404
    assert service.metric(counted) - before == 5
    assert "/etc/passwd" not in service.client.get("/metrics").text


# The examples in the schema: how each came about.


def _full(service: Service) -> httpx.Response:
    return send(service.client, b"x" * 20971521)


EXAMPLES: dict[tuple[str, str, str], Callable[[httpx.Client], httpx.Response]] = {
    ("/predict", "post", "200"): lambda client: send(client, png()),
    ("/predict", "post", "400"): lambda client: client.post("/predict"),
    ("/predict", "post", "413"): lambda client: send(client, b"x" * 20971521),
    ("/predict", "post", "415"): lambda client: send(client, b"no image"),
    ("/predict", "post", "422"): lambda client: send(client, png()[:60]),
    ("/livez", "get", "200"): lambda client: client.get("/livez"),
    ("/readyz", "get", "200"): lambda client: client.get("/readyz"),
    ("/healthz", "get", "200"): lambda client: client.get("/healthz"),
}
LOADING: dict[tuple[str, str, str], Callable[[httpx.Client], httpx.Response]] = {
    ("/predict", "post", "503"): lambda client: send(client, png()),
    ("/readyz", "get", "503"): lambda client: client.get("/readyz"),
    ("/healthz", "get", "503"): lambda client: client.get("/healthz"),
    ("/info", "get", "503"): lambda client: client.get("/info"),
}


@pytest.fixture(scope="module")
def schema(service: Service) -> dict[str, Any]:
    schema: dict[str, Any] = service.client.get("/openapi.json").json()
    return schema


def replay(schema: dict[str, Any], which: tuple[str, str, str], response: httpx.Response) -> None:
    path, method, code = which
    content = schema["paths"][path][method]["responses"][code]["content"]["application/json"]
    said = response.json()
    assert response.status_code == int(code)
    jsonschema.validate(said, {**content["schema"], "components": schema["components"]})
    for body in (said, content["example"]):
        body.pop("timing", None)
    if "probabilities" in said:
        rounded = [round(probability, 5) for probability in said["probabilities"]]
        assert rounded == content["example"].pop("probabilities")
        said.pop("probabilities")
        for best in said["top"]:
            best["probability"] = round(best["probability"], 5)
    assert said == content["example"]


@pytest.mark.parametrize("which", EXAMPLES, ids=" ".join)
def test_an_example_of_the_schema_is_what_is_answered(
    client: httpx.Client, schema: dict[str, Any], which: tuple[str, str, str]
) -> None:
    replay(schema, which, EXAMPLES[which](client))


def test_the_examples_of_a_service_that_is_not_ready_are_what_it_answers(schema: dict[str, Any]) -> None:
    gate = Gate()
    with serving(lambda: (gate(None), squares())[1]) as loading:
        try:
            for which, call in LOADING.items():
                replay(schema, which, call(loading.client))
            assert loading.client.get("/livez").status_code == 200
        finally:
            gate.opened.set()


@pytest.mark.slow
def test_the_examples_of_deadlines_are_what_is_answered(schema: dict[str, Any]) -> None:
    gate = Gate()
    with serving(squares(engine := Squares())) as service:
        engine.hook = gate
        try:
            response = send(service.client, png(), headers={"x-request-timeout": "0.5"})
            replay(schema, ("/predict", "post", "504"), response)
        finally:
            gate.opened.set()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_example_of_a_dead_engine_is_what_is_answered(schema: dict[str, Any]) -> None:
    def die(_: object) -> None:
        raise SystemExit  # ends the thread, as nothing that an engine raises should

    with serving(squares(engine := Squares())) as service:
        engine.hook = die
        send(service.client, png(), headers={"x-request-timeout": "0.5"})
        replay(schema, ("/livez", "get", "503"), service.client.get("/livez"))


def test_every_example_of_the_schema_is_replayed(schema: dict[str, Any]) -> None:
    written = {
        (path, method, code)
        for path, operations in schema["paths"].items()
        if not path.startswith("/v2")
        for method, operation in operations.items()
        for code, response in operation["responses"].items()
        if "example" in response.get("content", {}).get("application/json", {})
    }
    elsewhere = {
        ("/predict", "post", "504"),
        ("/predict", "post", "408"),  # tests/http/test_limits.py
        ("/livez", "get", "503"),
    }
    assert written == EXAMPLES.keys() | LOADING.keys() | elsewhere


def test_info_is_as_the_schema_says(client: httpx.Client, schema: dict[str, Any]) -> None:
    content = schema["paths"]["/info"]["get"]["responses"]["200"]["content"]["application/json"]
    jsonschema.validate(client.get("/info").json(), {**content["schema"], "components": schema["components"]})


def test_a_full_queue_turns_requests_away_and_not_readiness() -> None:
    gate = Gate()
    with serving(squares(engine := Squares()), max_inflight=1) as service:
        engine.hook = gate
        with httpx.Client(base_url=service.url) as other:
            import threading

            held = threading.Thread(target=lambda: send(other, png()))
            held.start()
            assert gate.entered.wait(10)
            refused = send(service.client, png())
            assert refused.status_code == 503
            assert "overloaded" in refused.json()["error"]
            assert int(refused.headers["retry-after"]) >= 1
            for path in ("/livez", "/readyz", "/healthz"):
                assert service.client.get(path).status_code == 200
            gate.opened.set()
            held.join()
            until(lambda: send(service.client, png()).status_code == 200)


def test_the_schema_is_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def counted(**described: Any) -> dict[str, Any]:
        made.append(described)
        return get_openapi(**described)

    monkeypatch.setattr("pthserve.http.schema.get_openapi", counted)
    with serving() as service:
        first, second = (service.client.get("/openapi.json") for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert len(made) == 1
