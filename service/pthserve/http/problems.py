"""Problems: error responses in JSON, with the status of `access.outcomes`."""

import math
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pthserve import errors
from pthserve.access.outcomes import GONE, status

JSON = "application/json"


class Problem(BaseModel):
    """The body of every error response."""

    error: str = Field(description="what was wrong, and what to do")


def described(description: str, error: str | None = None) -> dict[str, Any]:
    """Return the description of an error for the `responses` of a route.

    Args:
        error: An example of the message; a test compares it with a real response.
    """
    example = {} if error is None else {"content": {JSON: {"example": {"error": error}}}}
    return {"model": Problem, "description": description, **example}


def problem(code: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error response: `{"error": message}`."""
    return Response(orjson.dumps({"error": message}), code, headers, media_type=JSON)


def answer(error: errors.PthserveError) -> Response:
    """Return the response to a request that failed with `error`."""
    return problem(status(error), str(error), headers_of(error))


def headers_of(error: errors.PthserveError) -> dict[str, str]:
    """Return the additional headers of the response to a request that failed with `error`."""
    headers = {}
    if isinstance(error, errors.Unavailable | errors.RateLimited):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    elif isinstance(error, errors.Unauthorized):
        headers["www-authenticate"] = "Bearer"
    elif isinstance(error, errors.TooSlow):
        headers["connection"] = "close"
    return headers


async def _pthserve_error(_: Request, error: errors.PthserveError) -> Response:
    return answer(error)


async def http_exception(request: Request, error: HTTPException) -> Response:
    """Return the response to an exception of Starlette, usually because no route matches."""
    messages = {
        404: f"there is nothing at {request.url.path}; /docs lists the routes",
        405: f"{request.url.path} does not accept {request.method}; /docs lists its methods",
    }
    # The text of an HTTPException that a handler raises is kept.
    has_own_text = error.detail not in ("Not Found", "Method Not Allowed")
    message = error.detail if has_own_text else messages.get(error.status_code, error.detail)
    return problem(error.status_code, message, dict(error.headers or {}))


async def _client_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=GONE)


async def _unexpected(_: Request, __: Exception) -> Response:
    return problem(500, "internal error; the log has the details under this response's X-Request-Id")


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    errors.PthserveError: _pthserve_error,
    HTTPException: http_exception,
    ClientDisconnect: _client_disconnect,
    Exception: _unexpected,
}
"""The application's exception handlers."""
