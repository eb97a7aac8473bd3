"""Schema: the OpenAPI document, and routes whose descriptions nothing is built of until it is requested."""

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema


class Route(APIRoute):
    """A route that answers without its response models, which only the schema needs.

    FastAPI builds a validator for each of them when a route is made: 30 ms in all, at each start.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        self._options = options
        super().__init__(path, endpoint, **{**options, "responses": None, "response_model": None})

    def described(self) -> APIRoute:
        """The same route with its response models."""
        return APIRoute(self.path, self.endpoint, **self._options)


def new_router(**options: Any) -> APIRouter:
    """An APIRouter of `Route`s. options: as for APIRouter."""
    return APIRouter(**{"route_class": Route, **options})


def document(app: FastAPI, routers: Iterable[APIRouter]) -> dict[str, Any]:
    """The OpenAPI document of `app`, to which `routers` belong."""
    return get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=[
            route.described() for router in routers for route in router.routes if isinstance(route, Route)
        ],
    )


def add_models(document: dict[str, Any], models: Iterable[type[BaseModel]], mode: Any) -> None:
    """Add the schemas of `models` to the components of `document`, over those of the same names.

    mode: "validation" for what clients send, "serialization" for what they receive.
    """
    _, schemas = models_json_schema(
        [(model, mode) for model in models], ref_template="#/components/schemas/{model}"
    )
    document["components"]["schemas"].update(schemas["$defs"])


def reference(model: type[BaseModel]) -> dict[str, str]:
    """What stands for `model`, added by `add_models`, elsewhere in the document."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}
