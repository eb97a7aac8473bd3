"""App: the service's FastAPI application, assembled from its routers and middleware."""

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
from pthserve.http import explain, feedback, predict, problems, schema, site, status, torchserve, v2
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
    """Return the application that serves `predictor`; it can be mounted in another application.

    Args:
        load: Reloads the model, for the repository extension; without it, a request to reload is refused.
        guard: Checks API key and rate limit; without one, all requests are admitted.
        tracer: Makes a span of each request, except for probes and scrapes.
        bodies: Counts the bytes that requests hold, together with those of other servers.
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
    if settings.feedback:
        app.add(feedback.router(predictor, settings, needed))
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
    """Return the application for a separate metrics port; its only route is GET /metrics."""
    app = Application(lambda app: protected(app, settings))
    app.add(status.metrics())
    return app


class Admit:
    """A dependency that admits a request if `guard` does."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def __call__(self, request: Request) -> None:
        """Raise Unauthorized or RateLimited if the request is not admitted."""
        client = request.scope["client"]
        self._guard.admit(request.scope["headers"], client[0] if client else "")


class AdmitWithKey(Admit, SecurityBase):
    """The same for a guard that requires an API key, which the OpenAPI schema then describes."""

    scheme_name = "API key"
    model = APIKey.model_validate(
        {"in": "header", "name": "X-API-Key", "description": "or `Authorization: Bearer KEY`"}
    )


class Application(FastAPI):
    """A FastAPI application behind the service's own middleware.

    Args:
        behind: Wraps an ASGI app in the middleware that every request passes first.
        admit: The dependency of all routes that are not public, if there is one.
        predictor: The schema describes the task of its model; without a predictor there is no schema.
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
            telemetry={"tracing": False, "metrics": False, "logs": False},  # see `access` for ours
        )
        self._behind = behind
        self._admit = admit
        self._predictor = predictor
        self._routers: list[APIRouter] = []
        self._document: dict[str, Any] | None = None
        self._schemas: dict[tuple[str, str], bytes] = {}
        self._describing = Lock()
        if predictor is not None:
            self.add_api_route(
                "/openapi.json", self._schema, methods=["GET", "HEAD"], include_in_schema=False
            )

    def add(self, router: APIRouter) -> None:
        """Serve the routes of `router` and include them in the schema."""
        self.include_router(router)
        self._routers.append(router)

    def build_middleware_stack(self) -> ASGIApp:
        """Return FastAPI's stack, which turns exceptions into responses, behind the service's middleware.

        The middleware counts and logs every response, so it must be outermost.
        """
        return self._behind(super().build_middleware_stack())

    def openapi(self) -> dict[str, Any]:
        """Return the schema: with the answers of the model's task, or of all tasks if no model is loaded."""
        with self._describing:  # threads that need it at the same time wait for the first one
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
        """Return the schema as JSON, which is made when it is first requested."""
        assert self._predictor is not None
        model, root_path = self._predictor.current, request.scope.get("root_path", "")
        variant = (repr(model and model.task), root_path)  # after a reload, other defaults may hold
        if variant not in self._schemas:
            document = await run_in_threadpool(self.openapi)
            servers = {"servers": [{"url": root_path}]} if root_path else {}
            self._schemas[variant] = orjson.dumps({**document, **servers})
        return Response(self._schemas[variant], media_type=problems.JSON)

    async def _no_route(self, request: Request, error: HTTPException) -> Response:
        """Return the response for a request that no route matches.

        It needs a key, like the routes that are not public, unless the path belongs to a public route.
        """
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
