"""TorchServe: the routes and responses of its `image_classifier`, for existing clients.

`/ping`, `/predictions/NAME` and `/predictions/NAME/VERSION`. Errors have TorchServe's form and the status
codes of pthserve.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import orjson
from fastapi import APIRouter
from fastapi.params import Depends
from pydantic import BaseModel, RootModel
from starlette.requests import Request
from starlette.responses import Response

from pthserve.access.bodies import Bodies
from pthserve.access.outcomes import status
from pthserve.errors import MalformedRequest, NotFound, PthserveError
from pthserve.http import schema
from pthserve.http.images import read_image
from pthserve.http.limits import remaining
from pthserve.http.predict import note_predictions
from pthserve.http.problems import JSON, headers_of
from pthserve.inference_protocol.service import Service
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings

FIELD = "data"
"""The name of the part of a form that is the image."""
TOP = 5
"""Number of classes in a response."""
_TYPES = {
    404: "ModelNotFoundException",
    408: "RequestTimeoutException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
    504: "RequestTimeoutException",
}
"""TorchServe's name of an error by status; all others are BadRequestException."""


class Health(BaseModel):
    """The response of /ping."""

    status: str


class Failure(BaseModel):
    """TorchServe's form of an error."""

    code: int
    type: str
    message: str


class Labels(RootModel[dict[str, float]]):
    """The five most probable labels, best first, each with its probability."""


class Route(schema.Route):
    """A route whose errors have TorchServe's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, with a response for each PthserveError that it raises."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except PthserveError as error:
                code = status(error)
                failure = Failure(code=code, type=_type(error), message=str(error))
                return Response(_pretty(failure.model_dump()), code, headers_of(error), media_type=JSON)

        return handle


def ping(predictor: Predictor) -> APIRouter:
    """Return the route of TorchServe's probe."""
    routes = schema.new_router(tags=["TorchServe"])

    @routes.get("/ping", summary="Is it healthy?", responses={200: {"model": Health}, 500: {"model": Health}})
    async def ping() -> Response:
        """Healthy with status 200, or Unhealthy with 500 while no model is served."""
        reason = predictor.live() or predictor.unready
        health = Health(status="Unhealthy" if reason else "Healthy")
        return Response(_pretty(health.model_dump()), 500 if reason else 200, media_type=JSON)

    return routes


def router(
    predictor: Predictor, settings: Settings, bodies: Bodies, dependencies: Sequence[Depends] = ()
) -> APIRouter:
    """Return the routes of TorchServe's predictions."""
    routes = schema.new_router(tags=["TorchServe"], route_class=Route, dependencies=dependencies)
    service = Service(predictor, settings)

    @routes.post("/predictions/{model}", **_described("predictions"))
    @routes.put("/predictions/{model}", include_in_schema=False)  # as `curl -T` sends it
    @routes.post("/predictions/{model}/{version}", **_described("predictions_of_version"))
    @routes.put("/predictions/{model}/{version}", include_in_schema=False)
    async def predictions(request: Request) -> Response:
        """Send an image as the form field `data`, or as the body, to get its five most probable labels."""
        name, version = request.path_params["model"], request.path_params.get("version", "")
        service.check(name, version, remaining(request.scope))  # before the body is read
        image = await read_image(request, bodies, FIELD)
        prediction = await predictor.predict(image, deadline=remaining(request.scope))
        note_predictions(request, [prediction])
        top = prediction.answer.to_dict(TOP).get("top")
        if top is None:
            raise MalformedRequest("TorchServe's image_classifier has no answer for this task: use /predict")
        return Response(_pretty({best["label"]: best["probability"] for best in top}), media_type=JSON)

    return routes


def _described(operation: str) -> dict[str, Any]:
    file = {"schema": {"type": "string", "format": "binary"}}
    form = {"schema": {"type": "object", "properties": {FIELD: file["schema"]}, "required": [FIELD]}}
    return {
        "summary": "Classify an image",
        "operation_id": f"torchserve_{operation}",
        "responses": {
            200: {"model": Labels},
            "4XX": {"model": Failure, "description": "the request is wrong"},
            "5XX": {"model": Failure, "description": "the service is not ready, overloaded, or too late"},
        },
        "openapi_extra": {
            "requestBody": {"content": {"multipart/form-data": form, "application/octet-stream": file}}
        },
    }


def _type(error: PthserveError) -> str:
    if isinstance(error, NotFound) and "version" in str(error):
        return "ModelVersionNotFoundException"
    return _TYPES.get(status(error), "BadRequestException")


def _pretty(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
