"""Outcomes: the HTTP status of each error, in responses, in the log and in the metrics."""

from pthserve import errors

STATUS: dict[type[errors.PthserveError], int] = {
    errors.PthserveError: 500,
    errors.RequestError: 400,
    errors.Unauthorized: 401,
    errors.CrossOrigin: 403,
    errors.NotFound: 404,
    errors.TooSlow: 408,
    errors.SameProcess: 409,  # `serving.rollout` knows it by this status
    errors.ModelError: 409,  # a client requested a reload, and the new model is refused
    errors.TooLarge: 413,
    errors.UnsupportedImage: 415,
    errors.WrongHost: 421,
    errors.BrokenImage: 422,
    errors.RateLimited: 429,
    errors.TooManyCalls: 429,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
}
"""An error that is not listed has the status of its nearest base class that is."""

GONE = 499
"""The status that is logged and counted if the client left before the response; nginx uses the same."""


def status(error: errors.PthserveError) -> int:
    """Return the HTTP status of `error`."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
