"""OpenAPI: the schema, and what it says of the plain routes.

FastAPI puts it together. No request but the one for the schema needs either, so that it is imported then.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.responses import Response

import pthserve
from pthserve.certainty import Origin
from pthserve.http.problems import JSON


class Problem(BaseModel):
    """Every answer that is no answer."""

    error: str = Field(description="what was wrong, and what to do")


class State(BaseModel):
    """The answer of a probe that succeeds."""

    status: str


class Best(BaseModel):
    """One of the most probable classes."""

    class_index: int
    label: str
    probability: float


class Served(BaseModel):
    """The model that answered."""

    name: str
    version: str
    digest: str = Field(description="SHA-256 of the weights file")


class Timing(BaseModel):
    """Where the time went, in seconds."""

    decode: float
    queue: float
    infer: float
    batch: int = Field(description="images in the same forward pass")


class Answer(BaseModel):
    """What the model says of an image."""

    class_index: int = Field(description="the most probable class")
    label: str
    probabilities: list[float] = Field(description="one a class, in the order of the model's outputs")
    top: list[Best] = Field(description="the most probable classes, best first")
    model: Served
    timing: Timing


class Heat(BaseModel):
    """What in an image spoke for a class."""

    class_index: int
    label: str
    method: str = Field(description="Grad-CAM, class activation map, or occlusion")
    map: list[list[float]] = Field(
        description="rows of numbers, spread evenly over the crop: 0 spoke not for the class, 1 most of all"
    )


class Golden(BaseModel):
    """How the model did on its golden images."""

    images: int
    result: str = Field(description="agreed, disagreed, or unchecked")


class Fact(BaseModel):
    """One thing that was found out about the model; see docs/card.md."""

    subject: str
    value: str
    origin: Origin
    setting: str = Field(description="the line of model.yaml that states it")


class Info(BaseModel):
    """What is served, and how."""

    name: str
    version: str
    architecture: str
    parameters: int
    num_classes: int
    labels: list[str]
    task: dict[str, Any] = Field(description="what it answers: `name`, and the parameters of that task")
    digest: str = Field(description="SHA-256 of the weights file")
    engine: str
    precision: str
    preprocess: dict[str, Any] = Field(description="of an image; `assumed` where nobody said")
    inferred: list[Fact] = Field(description="what was found out about the model, and what that rests on")
    plan: dict[str, Any] = Field(description="how the model is run here, and what was tried")
    golden: Golden | None
    last_reload: dict[str, Any] | None = Field(description="what the latest reload came to")
    files_changed: bool = Field(
        description="whether the model's files have changed since what is served was loaded from them"
    )
    explain: bool = Field(description="whether POST /explain answers")


def example(value: object, description: str, model: type[BaseModel] = Problem) -> dict[str, Any]:
    """An entry of a route's `responses`, with an example that a test holds to be true."""
    return {"model": model, "description": description, "content": {JSON: {"example": value}}}


def problem(description: str, error: str) -> dict[str, Any]:
    """An entry of a route's `responses` for an error, with its words."""
    return example({"error": error}, description)


_DRAWN = "examples are of a model that tells red, green and blue squares apart"
_RED = {
    "class_index": 0,
    "label": "red",
    "probabilities": [0.8, 0.1, 0.1],
    "top": [
        {"class_index": 0, "label": "red", "probability": 0.8},
        {"class_index": 1, "label": "green", "probability": 0.1},
        {"class_index": 2, "label": "blue", "probability": 0.1},
    ],
    "model": {"name": "squares", "version": "1", "digest": "00" * 32},
    "timing": {"decode": 0.0015, "queue": 0.0001, "infer": 0.0081, "batch": 1},
}
_NOT_READY = problem("no model is ready yet", "the service is not ready: the model is loading")

PREDICT: dict[str, Any] = {
    "tags": ["Predict"],
    "summary": "Classify an image",
    "responses": {
        200: example(_RED, f"what the model says; {_DRAWN}", Answer),
        400: problem(
            "there is no image, or the request cannot be parsed",
            "the request carries no image: send it as the multipart field `image`, or as the body with its "
            "content type, such as image/png",
        ),
        408: problem(
            "the body did not arrive in time",
            "the request's body did not arrive within its deadline; send it faster",
        ),
        413: problem(
            "too many bytes, pixels or parts",
            "the request's body is larger than the 20971520 bytes that are allowed",
        ),
        415: problem(
            "not an image that is allowed",
            "the data is not an image; send one of JPEG, PNG, WebP, BMP, GIF, TIFF",
        ),
        422: problem("an image that is broken", "the PNG image is broken: image file is truncated"),
        503: problem(
            "overloaded, draining or not ready; `Retry-After` says when to try again",
            "the service is not ready: the model is loading",
        ),
        504: problem("the deadline passed", "there was no answer within the deadline"),
    },
    "openapi_extra": {
        "parameters": [
            {
                "name": "top",
                "in": "query",
                "description": "how many of the most probable classes to name",
                "schema": {"type": "integer", "minimum": 1, "default": 5},
            },
            {
                "name": "X-Request-Timeout",
                "in": "header",
                "description": "seconds after which the answer is of no use; can only shorten the deadline",
                "schema": {"type": "number", "exclusiveMinimum": 0},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "properties": {
                            "image": {
                                "type": "string",
                                "format": "binary",
                                "description": "a JPEG, PNG, WebP, BMP, GIF or TIFF file",
                            }
                        },
                    }
                },
                "image/*": {"schema": {"type": "string", "format": "binary"}},
            },
        },
    },
}

_WELL = example({"status": "ok"}, "it is", State)
PROBES: dict[str, dict[str, Any]] = {
    "/livez": {
        "tags": ["Probes"],
        "summary": "Is the process alive?",
        "responses": {200: _WELL, 503: problem("restart it", "the engine's thread has died")},
    },
    "/readyz": {
        "tags": ["Probes"],
        "summary": "Is it ready for traffic?",
        "responses": {200: _WELL, 503: problem("send nothing yet", "the model is loading")},
    },
    "/healthz": {
        "tags": ["Probes"],
        "summary": "Is all well?",
        "responses": {200: _WELL, 503: problem("not live, or not ready", "the model is loading")},
    },
}
INFO: dict[str, Any] = {
    "tags": ["Model"],
    "summary": "What is served?",
    "responses": {200: {"model": Info}, 503: _NOT_READY},
}
METRICS: dict[str, Any] = {
    "tags": ["Probes"],
    "summary": "Prometheus metrics",
    "responses": {200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}},
}
EXPLAIN: dict[str, Any] = {
    "tags": ["Predict"],
    "summary": "Show what in an image spoke for a class",
    "responses": {
        200: {
            "description": "the crop with the heat map over it; the map alone where `Accept` is JSON",
            "content": {"image/png": {}},
            "model": Heat,
        },
        400: {"description": "there is no image, no such class, or nothing to parse", "model": Problem},
        503: {"description": "as many heat maps as may be are being made, or /predict's", "model": Problem},
        **{code: {"description": "as of /predict", "model": Problem} for code in (408, 413, 415, 422, 504)},
    },
    "openapi_extra": {
        "parameters": [
            {
                "name": "class",
                "in": "query",
                "description": "the class to explain; the most probable one where there is none",
                "schema": {"type": "integer", "minimum": 0},
            },
            PREDICT["openapi_extra"]["parameters"][1],
        ],
        "requestBody": PREDICT["openapi_extra"]["requestBody"],
    },
}

PLAIN: Mapping[str, Mapping[str, Any]] = {
    "/predict": PREDICT,
    **PROBES,
    "/info": INFO,
    "/metrics": METRICS,
    "/explain": EXPLAIN,
}
"""By path."""

V2_PROBLEMS: Mapping[int | str, Mapping[str, Any]] = {
    "4XX": {"model": Problem, "description": "The request is at fault, or names what is not here"},
    "5XX": {"model": Problem, "description": "The service is not ready, overloaded, too late, or at fault"},
}


class Described(NamedTuple):
    """A route, and what the schema says of it, as FastAPI's `add_api_route` takes it."""

    path: str
    endpoint: Callable[..., Any]
    methods: list[str]
    fields: Mapping[str, Any]


def document(routes: Iterable[Described]) -> dict[str, Any]:
    """The schema of `routes`."""
    app = FastAPI(
        title="pthserve",
        version=pthserve.__version__,
        summary="A PyTorch image classifier as a service.",
        description='Errors are `{"error": "..."}` and say what to do. Every answer has an `X-Request-Id`.',
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    for path, endpoint, methods, fields in routes:
        app.add_api_route(path, endpoint, methods=methods, response_class=Response, **fields)
    return app.openapi()
