"""V2: the Open Inference Protocol and its extensions over REST."""

import asyncio
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter
from fastapi.params import Depends
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from pthserve.access.bodies import Bodies
from pthserve.access.request_log import note
from pthserve.errors import MalformedRequest, NotReady
from pthserve.http.bodies import (
    HEADER_LENGTH,
    InferRequest,
    Part,
    compressed,
    one_image,
    parsed,
    read,
    split,
    written,
)
from pthserve.http.limits import holding, remaining, until
from pthserve.http.problems import JSON, described
from pthserve.http.schema import add_models, new_router, reference
from pthserve.http.v2_answers import (
    Inferred,
    Live,
    ModelMetadata,
    ModelReady,
    ModelStatistics,
    Ready,
    ServerMetadata,
    State,
)
from pthserve.inference_protocol.compression import inflated
from pthserve.inference_protocol.infer import Request as Inference
from pthserve.inference_protocol.service import Load, Service
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings


class IndexRequest(BaseModel):
    """Which models to list."""

    model_config = ConfigDict(defer_build=True)

    ready: bool = False


class V2:
    """The handlers of the routes, one for each call of `service`; `bodies` parses large requests."""

    def __init__(self, service: Service, bodies: Bodies) -> None:
        self._service = service
        self._bodies = bodies

    async def server_metadata(self, _: Request) -> Response:
        """Name, version and protocol extensions of the server."""
        return _json(self._service.server_metadata())

    async def live(self, _: Request) -> Response:
        """Whether the process answers, and its engine makes progress."""
        return _state(self._service.live(), {"live": True})

    async def ready(self, _: Request) -> Response:
        """Whether inference requests should be sent now."""
        return _state(self._service.unready(), {"ready": True})

    async def model_ready(self, request: Request) -> Response:
        """Whether inference requests for this model should be sent now."""
        name, version = _model(request)
        return _state(self._service.model_unready(name, version), {"name": name, "ready": True})

    async def model_metadata(self, request: Request) -> Response:
        """The inputs, of which a request must have one, and the outputs; -1 means any size."""
        return _json(self._service.model_metadata(*_model(request)))

    async def model_statistics(self, request: Request) -> Response:
        """Counts and durations since the process started."""
        return _json(self._service.statistics(*_model(request)))

    async def statistics(self, _: Request) -> Response:
        """Counts and durations since the process started, for every model; a service has one."""
        return _json(self._service.statistics())

    async def infer(self, request: Request) -> Response:
        """Classify a batch: encoded images, their pixels, or preprocessed tensors; JSON or binary data."""
        name, version = _model(request)
        self._service.check(name, version, remaining(request.scope))  # before the body is read
        inflate = partial(inflated, limit=self._bodies.max_body) if _is_compressed(request) else None
        inference = await self._bodies.read(
            holding(request.scope),
            await request.body(),
            until(request.scope),
            partial(_inference, request=request, name=name, version=version),
            inflate,
        )
        answered = await self._service.infer(inference, remaining(request.scope))
        note(request.scope, **answered.notes)
        if answered.is_large:
            held, memory = holding(request.scope), answered.memory
            held.grow_for_response(memory)  # until `Limits` counts what is written
            content, headers = await asyncio.to_thread(written, answered)
            held.shrink(memory)
        else:
            content, headers = written(answered)
        return Response(content, headers=headers)

    async def index(self, request: Request) -> Response:
        """The one model, and whether it is ready."""
        query = parsed(IndexRequest, await _object(request))
        return _json(self._service.index(ready=query.ready))

    async def load(self, request: Request) -> Response:
        """Load the model's file again; if the new model fails its checks, the old one stays in use."""
        query = parsed(Part, await _object(request))
        await self._service.load(request.path_params["model"], query.parameters or {})
        return Response()

    async def unload(self, request: Request) -> Response:
        """Always refused: a service has one model, which cannot be unloaded."""
        self._service.unload(request.path_params["model"])
        return Response()


_MODEL = "/models/{model}"
_VERSION = "/models/{model}/versions/{version}"
_OF_VERSION = "_of_version"
_HEALTH = (
    ("GET", "/health/live", V2.live, "Is the server live?"),
    ("GET", "/health/ready", V2.ready, "Is the server ready?"),
)
_ROUTES = (
    ("GET", "", V2.server_metadata, "Server metadata"),
    ("GET", "/models/stats", V2.statistics, "Statistics of every model"),
    *(
        (method, f"{place}{rest}", call, summary)
        for place in (_MODEL, _VERSION)
        for method, rest, call, summary in (
            ("GET", "", V2.model_metadata, "Model metadata"),
            ("GET", "/ready", V2.model_ready, "Is the model ready?"),
            ("GET", "/stats", V2.model_statistics, "Statistics of the model"),
            ("POST", "/infer", V2.infer, "Infer"),
        )
    ),
    ("POST", "/repository/index", V2.index, "Which models are there?"),
    ("POST", "/repository/models/{model}/load", V2.load, "Load the model again"),
    ("POST", "/repository/models/{model}/unload", V2.unload, "Unload the model"),
)
_BODIES: Mapping[str, type[BaseModel]] = {
    "infer": InferRequest,
    "index": IndexRequest,
    "load": Part,
    "unload": Part,
}
_ANSWERS: Mapping[str, Any] = {
    "server_metadata": ServerMetadata,
    "live": Live,
    "ready": Ready,
    "model_ready": ModelReady,
    "model_metadata": ModelMetadata,
    "model_statistics": ModelStatistics,
    "statistics": ModelStatistics,
    "infer": Inferred,
    "index": list[State],
}
"""The response model of each call; the other calls have no response body."""


def routers(
    predictor: Predictor,
    settings: Settings,
    bodies: Bodies,
    load: Load | None = None,
    dependencies: Sequence[Depends] = (),
) -> tuple[APIRouter, APIRouter]:
    """Return the routes below /v2: those of the server's health, which are public, and the others.

    Args:
        bodies: Counts the bytes of requests, and parses large ones outside the event loop.
        load: Reloads the model, for the repository extension.
        dependencies: Dependencies of the routes that are not public.
    """
    v2 = V2(Service(predictor, settings, load), bodies)
    tags: list[str | Enum] = ["Open Inference Protocol"]
    health = new_router(prefix="/v2", tags=tags)
    protocol = new_router(prefix="/v2", tags=tags, dependencies=dependencies)
    for router, table in ((health, _HEALTH), (protocol, _ROUTES)):
        for method, path, call, summary in table:
            router.add_api_route(
                path,
                getattr(v2, call.__name__),
                methods=[method],
                summary=summary,
                response_class=Response,
                **_described(path, call.__name__),
            )
    return health, protocol


def _described(path: str, name: str) -> Mapping[str, Any]:
    """Return the part of a route's description that FastAPI cannot derive from its handler."""
    parameters = [
        {"name": part, "in": "path", "required": True, "schema": {"type": "string"}}
        for part in ("model", "version")
        if f"{{{part}}}" in path
    ]
    return {
        "responses": {
            200: {"model": _ANSWERS.get(name), "description": "done"},
            "4XX": described("the request is wrong, or names a model or version that does not exist"),
            "5XX": described("the service is not ready, overloaded, too late, or failed"),
        },
        "operation_id": f"v2_{name}{_OF_VERSION if path.startswith(_VERSION) else ''}",
        "openapi_extra": {"parameters": parameters},
    }


def describe_bodies(document: dict[str, Any]) -> None:
    """Describe in the OpenAPI `document` the request bodies of the calls."""
    add_models(document, _BODIES.values(), "validation")
    for operations in document["paths"].values():
        for operation in operations.values():
            call = operation["operationId"].removeprefix("v2_").removesuffix(_OF_VERSION)
            if operation["operationId"].startswith("v2_") and call in _BODIES:
                operation["requestBody"] = {"content": {JSON: {"schema": reference(_BODIES[call])}}}


def _inference(body: bytes, request: Request, name: str, version: str) -> Inference:
    length = request.headers.get(HEADER_LENGTH)
    text, data = split(body, length)
    if length is not None and not text:
        # By the extension, every output would be binary data. JSON is more useful to a person with curl, and
        # a client that reads the response's header can parse it, too.
        binary = "application/octet-stream" in request.headers.get("accept", "")
        return one_image(data, name, version, binary=binary)
    return read(text, data, name, version)


def _is_compressed(request: Request) -> bool:
    return compressed(request.headers.get("content-encoding", "").lower())


async def _object(request: Request) -> bytes:
    """Return the body of a request without tensors, which must not be compressed."""
    if _is_compressed(request):
        raise MalformedRequest(
            "only the body of an inference request may be compressed; send it uncompressed"
        )
    return await request.body()


def _model(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


def _state(reason: str | None, good: dict[str, object]) -> Response:
    if reason is not None:
        raise NotReady(reason)
    return _json(good)


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type=JSON)
