"""App: the ASGI app, of the routes and of what stands before them."""

from collections.abc import Iterable

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pthserve.access.bodies import Bodies
from pthserve.access.guard import Guard
from pthserve.access.request_log import Logged
from pthserve.errors import PthserveError
from pthserve.http import explain, problems, routes, site, v2
from pthserve.http.limits import Limits
from pthserve.http.origins import protected
from pthserve.http.routing import Route, schema
from pthserve.inference_protocol.service import Load
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings
from pthserve.tracing import Tracer


def create_app(
    predictor: Predictor,
    settings: Settings,
    load: Load | None = None,
    guard: Guard | None = None,
    tracer: Tracer | None = None,
    bodies: Bodies | None = None,
) -> ASGIApp:
    """The app that answers for `predictor`.

    load: reads the model's file again. guard: says who is let in; without one everybody is.
    tracer: makes a span of each request, but of probes and scrapes. bodies: counts the bytes that requests
    hold, with those of other servers.
    """
    bodies = bodies or Bodies(settings.max_body, settings.cpus)
    every = [
        *routes.routes(predictor, settings),
        *v2.routes(predictor, settings, bodies, load),
        *explain.routes(predictor, settings),
        *site.routes(),
        Route("/openapi.json", _schema, ("GET", "HEAD"), public=True),
    ]
    app = Starlette(routes=every, exception_handlers=problems.HANDLERS)
    app.router.redirect_slashes = False
    bounded: ASGIApp = Limits(app, settings.deadline, bodies, lambda: predictor.draining)
    guarded = Guarded(bounded, guard, every) if guard is not None else bounded
    return Logged(protected(guarded, settings), tracer)


def create_metrics_app(settings: Settings) -> ASGIApp:
    """The app for a port of its own that answers GET /metrics and nothing else."""
    app = Starlette(
        routes=[Route("/metrics", routes.metrics, ("GET", "HEAD"), public=True)],
        exception_handlers=problems.HANDLERS,
    )
    return protected(app, settings)


class Guarded:
    """ASGI middleware: `guard` before every path that is not one of a public route among `routes`."""

    def __init__(self, app: ASGIApp, guard: Guard, routes: Iterable[Route]) -> None:
        self._app = app
        self._guard = guard
        public = [route for route in routes if route.public]
        self._paths = frozenset(route.path for route in public if "{" not in route.path)
        self._patterns = [route.path_regex for route in public if "{" in route.path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_public(scope["path"]):
            peer = scope["client"][0] if scope["client"] else ""
            try:
                self._guard.admit(scope["headers"], peer)
            except PthserveError as error:
                await problems.answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_public(self, path: str) -> bool:
        return path in self._paths or any(pattern.match(path) for pattern in self._patterns)


async def _schema(request: Request) -> Response:
    """The service's schema, for machines; written when it is first asked for."""
    app = request.app
    if not hasattr(app.state, "schema"):
        app.state.schema = orjson.dumps(await run_in_threadpool(schema, app.routes))
    return Response(app.state.schema, media_type=problems.JSON)
