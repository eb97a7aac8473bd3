"""Each error's gRPC status."""

import grpc

from pthserve.errors import (
    DeadlineExceeded,
    EngineFailed,
    ModelError,
    NotFound,
    PthserveError,
    RateLimited,
    RequestError,
    TooLarge,
    TooManyCalls,
    TooSlow,
    Unauthorized,
    Unavailable,
)

CODES: dict[type[PthserveError], grpc.StatusCode] = {
    Unauthorized: grpc.StatusCode.UNAUTHENTICATED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,  # what gRPC itself says of a message over its limit
    TooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
    RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    TooManyCalls: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    EngineFailed: grpc.StatusCode.INTERNAL,
}


def code(error: PthserveError) -> grpc.StatusCode:
    """The status of `error`: its own, or that of the nearest class above it that has one."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.INTERNAL)
