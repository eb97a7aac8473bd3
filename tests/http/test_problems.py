"""Each error's status, and what a client is told."""

import inspect

import orjson
import pytest

from pthserve import errors
from pthserve.access import outcomes
from pthserve.http import problems

ERRORS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PthserveError)
]


def made(kind: type[errors.PthserveError]) -> errors.PthserveError:
    return (
        kind("what, and what to do", 1.4)
        if issubclass(kind, errors.RateLimited | errors.Unavailable)
        else kind("what, and what to do")
    )


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_is_told_as_json_with_its_status(kind: type[errors.PthserveError]) -> None:
    response = problems.answer(made(kind))
    assert orjson.loads(response.body) == {"error": "what, and what to do"}
    assert response.media_type == "application/json"
    if issubclass(kind, errors.RequestError):
        assert 400 <= response.status_code < 500


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.MalformedRequest, 400),
        (errors.Unauthorized, 401),
        (errors.NotFound, 404),
        (errors.TooSlow, 408),
        (errors.TooLarge, 413),
        (errors.UnsupportedImage, 415),
        (errors.BrokenImage, 422),
        (errors.RateLimited, 429),
        (errors.Overloaded, 503),
        (errors.Draining, 503),
        (errors.NotReady, 503),
        (errors.DeadlineExceeded, 504),
        (errors.EngineFailed, 500),
    ],
)
def test_the_status_is_the_promised_one(kind: type[errors.PthserveError], code: int) -> None:
    assert outcomes.status(made(kind)) == code


@pytest.mark.parametrize(("seconds", "told"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.4, "2"), (7.0, "7")])
def test_when_to_try_again_is_told_in_whole_seconds(seconds: float, told: str) -> None:
    for error in (errors.Overloaded("full", seconds), errors.RateLimited("spent", seconds)):
        assert problems.answer(error).headers["retry-after"] == told
