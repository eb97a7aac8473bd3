"""Outcomes: the HTTP status that each error has, in responses, in the log and in the metrics."""

from pthserve import errors

STATUS: dict[type[errors.PthserveError], int] = {
    errors.PthserveError: 500,
    errors.RequestError: 400,
    errors.Unauthorized: 401,
    errors.CrossOrigin: 403,
    errors.NotFound: 404,
    errors.TooSlow: 408,
    errors.ModelError: 409,  # a client asked for a reload, and the model it asked for cannot be loaded
    errors.TooLarge: 413,
    errors.UnsupportedImage: 415,
    errors.WrongHost: 421,
    errors.BrokenImage: 422,
    errors.RateLimited: 429,
    errors.TooManyCalls: 429,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
}
"""An error that is not listed has the status of its nearest ancestor that is."""

GONE = 499
"""What is logged and counted where the client left before its answer; nginx's number for it."""


def status(error: errors.PthserveError) -> int:
    """The HTTP status that says what `error` is."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
