"""App: the service's FastAPI application, put together of its routers and of what stands before them."""

from collections.abc import Callable
from copy import deepcopy
from threading import Lock
from typing import Any

import orjson
from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.models import APIKey
from fastapi.security.base import SecurityBase
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp

import pthserve
from pthserve.access.bodies import Bodies
from pthserve.access.guard import Guard
from pthserve.access.request_log import Logged
from pthserve.errors import PthserveError
from pthserve.http import explain, predict, problems, schema, site, status, torchserve, v2
from pthserve.http.limits import Limits
from pthserve.http.origins import protected
from pthserve.inference_protocol.service import Load
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings
from pthserve.tasks.choice import TASKS
from pthserve.tracing import Tracer


def create_app(
    predictor: Predictor,
    settings: Settings,
    load: Load | None = None,
    guard: Guard | None = None,
    tracer: Tracer | None = None,
    bodies: Bodies | None = None,
) -> "Application":
    """The application that answers for `predictor`; it may be mounted in another.

    Args:
        load: reads the model's file again.
        guard: says who is let in; without one everybody is.
        tracer: makes a span of each request, except for probes and scrapes.
        bodies: counts the bytes that requests hold, with those of other servers.
    """
    bodies = bodies or Bodies(settings.max_body, settings.cpus)

    def behind(app: ASGIApp) -> ASGIApp:
        limited = Limits(app, settings.deadline, bodies, lambda: predictor.draining)
        return Logged(protected(limited, settings), tracer)

    admit = None if guard is None else AdmitWithKey(guard) if settings.api_keys is not None else Admit(guard)
    app = Application(behind, admit, predictor)
    needed = [Depends(admit)] if admit is not None else []
    health, protocol = v2.routers(predictor, settings, bodies, load, needed)
    app.add(predict.router(predictor, bodies, needed))
    app.add(protocol)
    if settings.explain == "on":
        app.add(explain.router(predictor, bodies, needed))
    app.add(status.info(predictor, settings, needed))
    if settings.torchserve_api == "on":
        app.add(torchserve.router(predictor, settings, bodies, needed))
        app.add(torchserve.ping(predictor))
    app.add(health)
    app.add(status.probes(predictor))
    if settings.metrics_port is None:
        app.add(status.metrics())
    app.add(site.router())
    return app


def create_metrics_app(settings: Settings) -> FastAPI:
    """The application for a port of its own that answers GET /metrics and nothing else."""
    app = Application(lambda app: protected(app, settings))
    app.add(status.metrics())
    return app


class Admit:
    """A dependency: lets a request in if `guard` does."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def __call__(self, request: Request) -> None:
        """Raises Unauthorized or RateLimited."""
        client = request.scope["client"]
        self._guard.admit(request.scope["headers"], client[0] if client else "")


class AdmitWithKey(Admit, SecurityBase):
    """The same, of a guard that wants an API key: the schema says so."""

    scheme_name = "API key"
    model = APIKey.model_validate(
        {"in": "header", "name": "X-API-Key", "description": "or `Authorization: Bearer KEY`"}
    )


class Application(FastAPI):
    """FastAPI's application behind middleware of ours.

    behind: puts what every request passes first before the rest.
    admit: the dependency of all routes that are not public, if there is one.
    predictor: its model's task is in the schema; without one there is no schema.
    """

    def __init__(
        self,
        behind: Callable[[ASGIApp], ASGIApp],
        admit: Admit | None = None,
        predictor: Predictor | None = None,
    ) -> None:
        super().__init__(
            title="pthserve",
            version=pthserve.__version__,
            summary="A PyTorch model for images as a service.",
            description='Errors are `{"error": "..."}` and say what to do; responses have an `X-Request-Id`.',
            openapi_url=None,
            redirect_slashes=False,
            exception_handlers={**problems.HANDLERS, HTTPException: self._no_route},
            telemetry={"tracing": False, "metrics": False, "logs": False},  # ours are in `access`
        )
        self._behind = behind
        self._admit = admit
        self._predictor = predictor
        self._routers: list[APIRouter] = []
        self._document: dict[str, Any] | None = None
        self._schemas: dict[object, bytes] = {}
        self._describing = Lock()
        if predictor is not None:
            self.add_api_route(
                "/openapi.json", self._schema, methods=["GET", "HEAD"], include_in_schema=False
            )

    def add(self, router: APIRouter) -> None:
        """Serve the routes of `router`, and describe them in the schema."""
        self.include_router(router)
        self._routers.append(router)

    def build_middleware_stack(self) -> ASGIApp:
        """FastAPI's own, which answers what is raised, behind ours, which count and log every response."""
        return self._behind(super().build_middleware_stack())

    def openapi(self) -> dict[str, Any]:
        """The schema: answers are those of the served model's task, or of all tasks before there is one."""
        with self._describing:  # threads that ask at once wait for one of them
            if self._document is None:
                self._document = schema.document(self, self._routers)
        document = deepcopy(self._document)
        if self._predictor is not None:
            model = self._predictor.current
            tasks = [model.task] if model is not None else TASKS.values()
            predict.describe_answers(document, [task.answer_model for task in tasks])
            if model is not None:
                predict.describe_parameters(document, model.task)
            v2.describe_bodies(document)
        return document

    async def _schema(self, request: Request) -> Response:
        """The schema as JSON, written when it is first requested."""
        assert self._predictor is not None
        model, root_path = self._predictor.current, request.scope.get("root_path", "")
        known = (model and model.task.name, root_path)
        if known not in self._schemas:
            document = await run_in_threadpool(self.openapi)
            servers = {"servers": [{"url": root_path}]} if root_path else {}
            self._schemas[known] = orjson.dumps({**document, **servers})
        return Response(self._schemas[known], media_type=problems.JSON)

    async def _no_route(self, request: Request, error: HTTPException) -> Response:
        """The response if no route matches: a key is needed for it, unless the path is a public one's."""
        path, root_path = request.scope["path"], request.scope.get("root_path", "")
        if error.status_code == 404 and root_path and path == root_path:
            return RedirectResponse(f"{root_path}/")  # the pages' links are relative to it
        needed = getattr(request.scope.get("route"), "dependencies", None)
        if self._admit is not None and needed != []:
            try:
                await self._admit(request)
            except PthserveError as refused:
                return problems.answer(refused)
        return await problems.http_exception(request, error)
