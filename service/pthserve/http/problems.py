"""Problems: the JSON that says what went wrong, with the status of `access.outcomes`."""

import math
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pthserve import errors
from pthserve.access.outcomes import GONE, status

JSON = "application/json"


def problem(code: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error response: `{"error": message}`."""
    return Response(orjson.dumps({"error": message}), code, headers, media_type=JSON)


def answer(error: errors.PthserveError) -> Response:
    """What a client is told of `error`."""
    headers = {}
    if isinstance(error, errors.Unavailable | errors.RateLimited):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    elif isinstance(error, errors.Unauthorized):
        headers["www-authenticate"] = "Bearer"
    elif isinstance(error, errors.TooSlow):
        headers["connection"] = "close"
    return problem(status(error), str(error), headers)


async def _on_purpose(_: Request, error: errors.PthserveError) -> Response:
    return answer(error)


async def _of_the_framework(request: Request, error: HTTPException) -> Response:
    messages = {
        404: f"there is nothing at {request.url.path}; /docs lists what there is",
        405: f"{request.url.path} does not take {request.method}; /docs lists what it takes",
    }
    # A handler that raises its own HTTPException has its own words for it.
    spoken = error.detail not in ("Not Found", "Method Not Allowed")
    message = error.detail if spoken else messages.get(error.status_code, error.detail)
    return problem(error.status_code, message, dict(error.headers or {}))


async def _of_the_client(_: Request, __: Exception) -> Response:
    return Response(status_code=GONE)


async def _by_mistake(_: Request, __: Exception) -> Response:
    return problem(500, "the service made a mistake; its log says which, under this answer's X-Request-Id")


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    errors.PthserveError: _on_purpose,
    HTTPException: _of_the_framework,
    ClientDisconnect: _of_the_client,
    Exception: _by_mistake,
}
"""For the app: who answers for which exception."""
