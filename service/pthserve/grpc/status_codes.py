"""Status codes: the gRPC status of each error."""

import grpc

from pthserve.errors import (
    DeadlineExceeded,
    EngineFailed,
    ModelError,
    NotFound,
    PthserveError,
    RateLimited,
    RequestError,
    SameProcess,
    TooLarge,
    TooManyCalls,
    TooSlow,
    Unauthorized,
    Unavailable,
)

CODES: dict[type[PthserveError], grpc.StatusCode] = {
    Unauthorized: grpc.StatusCode.UNAUTHENTICATED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,  # as gRPC itself answers a message over its limit
    TooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
    RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SameProcess: grpc.StatusCode.FAILED_PRECONDITION,
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    TooManyCalls: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    EngineFailed: grpc.StatusCode.INTERNAL,
}


def code(error: PthserveError) -> grpc.StatusCode:
    """Return the status of the class of `error`, or of its nearest base class that has one."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.INTERNAL)
