"""The application as a whole: mounted, behind a proxy's prefix, with keys, and its schema."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pthserve.access.guard import Guard
from pthserve.http.app import create_app
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings
from pthserve.tasks.base import Size
from pthserve.tasks.choice import TASKS
from pthserve.tasks.classification import ClassificationTask
from pthserve.tasks.detection import DetectionTask
from pthserve.tasks.objects import Table

from ..asgi import Client
from ..http_service import serving
from ..serving.squares import png, squares

KEY = {"X-API-Key": "alpha-key"}
PUBLIC = ("/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/docs", "/openapi.json", "/")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("alpha-key\n")
    return path


@contextmanager
def mounted(prefix: str, **settings: Any) -> Iterator[Client]:
    """A client of an application that has the service mounted below `prefix`."""
    chosen = Settings(**settings)
    predictor = Predictor(chosen)
    predictor.adopt(squares())
    guard = Guard(chosen) if chosen.api_keys or chosen.rate_limit else None
    outer = FastAPI()
    outer.mount(prefix, create_app(predictor, chosen, guard=guard))
    with Client(outer) as client:
        yield client
    predictor.close()


# --- mounted ----------------------------------------------------------------------------------------------


def test_a_mounted_service_asks_for_keys_where_one_on_a_port_does(keys: Path) -> None:
    with mounted("/model", api_keys=keys) as client:
        for path in PUBLIC:
            assert client.get(f"/model{path}").status_code != 401, path
        for path in ("/info", "/v2", "/v2/models/squares", "/nowhere", "/predict"):
            assert client.get(f"/model{path}").status_code == 401, path
        assert client.get("/model/info", headers=KEY).json()["name"] == "squares"
        assert client.post("/model/predict", files={"image": png()}, headers=KEY).status_code == 200


def test_a_mounted_service_counts_only_the_requests_that_need_a_token() -> None:
    with mounted("/model", rate_limit="1/hour") as client:
        for path in PUBLIC:
            assert client.get(f"/model{path}").status_code != 429, path
        assert [client.get("/model/info").status_code for _ in range(2)] == [200, 429]


def test_a_mounted_service_says_in_its_schema_where_it_is() -> None:
    with mounted("/model") as client:
        assert client.get("/model/openapi.json").json()["servers"] == [{"url": "/model"}]
        assert client.get("/model/page/x/y").status_code == 404


# --- behind a proxy that leaves its prefix ----------------------------------------------------------------


def test_a_prefix_that_a_proxy_leaves_is_taken_off_and_needs_not_be_there(keys: Path) -> None:
    with serving(root_path="/cats/v1", api_keys=keys) as service:
        for prefix in ("", "/cats/v1"):
            for path in PUBLIC:
                assert service.client.get(prefix + path).status_code == 200, prefix + path
            assert service.client.get(f"{prefix}/info").status_code == 401
            reply = service.client.post(f"{prefix}/predict", files={"image": png()}, headers=KEY)
            assert (reply.status_code, reply.json()["label"]) == (200, "red")
            infer = f"{prefix}/v2/models/squares"
            assert service.client.get(infer, headers=KEY).json()["name"] == "squares"
        assert service.client.get("/dogs/info", headers=KEY).status_code == 404
        assert service.client.get("/openapi.json").json()["servers"] == [{"url": "/cats/v1"}]


def test_routes_have_the_same_names_in_metrics_with_a_prefix() -> None:
    with serving(root_path="/cats") as service:
        counted = 'pthserve_requests_total{code="200",route="/predict"}'
        before = service.metric(counted)
        service.client.post("/cats/predict", files={"image": png()})
        assert service.metric(counted) == before + 1


def test_the_prefix_alone_leads_to_the_page_whose_links_are_relative() -> None:
    with serving(root_path="/cats") as service:
        reply = service.client.get("/cats")
        assert (reply.status_code, reply.headers["location"]) == (307, "/cats/")
        page = service.client.get("/cats", follow_redirects=True)
        assert page.headers["content-type"].startswith("text/html")
        assert service.client.get("/cats/docs").status_code == 200


@pytest.mark.parametrize("value", ["", "cats", "/", "/cats/", "//cats", "/a b", "/a?b", "/a//b", "/{x}"])
def test_a_prefix_that_is_not_a_path_is_refused_with_the_settings(value: str) -> None:
    with pytest.raises(ValidationError, match="such as /cats"):
        Settings(root_path=value)


# --- from another site's page -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("origins", ["https://shop.example", "*"])
def test_a_page_may_send_json_with_a_key_and_never_cookies(keys: Path, origins: str) -> None:
    origin = {"Origin": "https://shop.example"}
    with serving(cors_origins=origins, api_keys=keys) as service:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,x-api-key",
        }
        preflight = service.client.options("/predict", headers=origin | asked)
        assert preflight.status_code == 200
        allowed = preflight.headers["access-control-allow-headers"].lower()
        assert "content-type" in allowed
        assert "x-api-key" in allowed
        reply = service.client.post("/predict", files={"image": png()}, headers=origin | KEY)
        assert reply.status_code == 200
        for response in (preflight, reply):
            assert response.headers["access-control-allow-origin"] in (origins, "https://shop.example")
            assert "access-control-allow-credentials" not in response.headers


# --- the schema -------------------------------------------------------------------------------------------


def test_the_schema_says_which_routes_need_a_key(keys: Path) -> None:
    with serving(api_keys=keys) as service:
        schema = service.client.get("/openapi.json").json()
    assert schema["components"]["securitySchemes"]["API key"]["name"] == "X-API-Key"
    guarded = {
        path
        for path, operations in schema["paths"].items()
        for operation in operations.values()
        if operation.get("security")
    }
    public = {"/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready"}
    assert guarded == schema["paths"].keys() - public


def test_a_schema_without_keys_asks_for_none(client: httpx.Client) -> None:
    assert "security" not in json.dumps(client.get("/openapi.json").json())


class Count(BaseModel):
    """How many squares."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"task": "counting", "squares": 3}]})

    task: str
    squares: int


class Counted:
    def to_dict(self, top: int) -> dict[str, Any]:
        return {"task": "counting", "squares": 3}


class Counting(ClassificationTask):
    """A task of another kind."""

    name = "counting"
    answer_model: type[BaseModel] = Count

    def answer(self, output: NDArray[np.float32], labels: Sequence[str], size: Size = (1, 1)) -> Any:
        return Counted()

    def count(self, answer: Any) -> None:
        pass


def test_the_schema_describes_the_answer_of_the_served_model_s_task() -> None:
    with serving(replace(squares(), task=Counting())) as service:
        schema = service.client.get("/openapi.json").json()
        answer = service.client.post("/predict", files={"image": png()}).json()
    described = schema["components"]["schemas"]["Answer"]
    assert described["properties"].keys() == answer.keys() == {"task", "squares", "model", "timing"}
    example = schema["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"][
        "example"
    ]
    assert example.keys() == answer.keys()
    assert "RankedClass" not in schema["components"]["schemas"]


def test_after_a_reload_the_schema_has_the_defaults_of_the_new_model() -> None:
    chosen = Settings()
    predictor = Predictor(chosen)
    with Client(create_app(predictor, chosen)) as client:
        for threshold in (0.5, 0.25):
            predictor.adopt(squares(task=DetectionTask(Table(most=3), threshold)))
            operation = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
            defaults = {one["name"]: one["schema"].get("default") for one in operation["parameters"]}
            assert defaults["threshold"] == threshold
    predictor.close()


def test_the_schema_describes_the_answers_of_all_tasks_before_there_is_a_model() -> None:
    chosen = Settings()
    predictor = Predictor(chosen)
    document = create_app(predictor, chosen).openapi()
    predictor.close()
    schemas = document["components"]["schemas"]
    answers = {one["$ref"].rpartition("/")[2] for one in schemas["Answer"]["anyOf"]}
    assert answers == {task.answer_model.__name__ for task in TASKS.values()}
    assert len(answers) == len(TASKS)
    for answer in answers:
        assert {"model", "timing"} <= schemas[answer]["properties"].keys()
