"""App: the ASGI app, of the routers and of what stands before them."""

from fastapi import FastAPI
from starlette.types import ASGIApp

import pthserve
from pthserve.http import explain, page, problems, routes, v2
from pthserve.http.guard import Guard, Guarded
from pthserve.http.limits import Limits
from pthserve.http.logs import Logged
from pthserve.protocol.service import Load
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings
from pthserve.tracing import Tracer


def create_app(
    predictor: Predictor,
    settings: Settings,
    load: Load | None = None,
    guard: Guard | None = None,
    tracer: Tracer | None = None,
) -> ASGIApp:
    """The app that answers for `predictor`.

    load: reads the model's file again. guard: says who is let in; without one everybody is.
    tracer: makes a span of each request, but of probes and scrapes.
    """
    app = FastAPI(
        title="pthserve",
        version=pthserve.__version__,
        summary="A PyTorch image classifier as a service.",
        description='Errors are `{"error": "..."}` and say what to do. Every answer has an `X-Request-Id`.',
        exception_handlers=problems.HANDLERS,
        redirect_slashes=False,
        docs_url=None,  # the page has its own, which asks no other host
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours is for gRPC too
    )
    routers = (
        routes.router(predictor, settings),
        v2.router(predictor, settings, load),
        explain.router(predictor, settings),
        page.router(),
    )
    # As routes of the app itself: of a router within a router, each request's path is matched twice over.
    app.router.routes[:0] = [route for router in routers for route in router.routes]
    bounded: ASGIApp = Limits(app, settings.deadline, settings.max_body, lambda: predictor.draining)
    return Logged(Guarded(bounded, guard) if guard is not None else bounded, tracer)
