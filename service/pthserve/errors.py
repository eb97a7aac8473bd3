"""Every error that pthserve raises on purpose.

PthserveError
├── ModelError                the model cannot be loaded (exit code 3)
│   ├── WeightsError          the weights file: missing, truncated, foreign, unsafe, wrong digest, not finite
│   ├── ArchitectureError     no architecture fits the state dict, or the named one does not
│   │   └── AmbiguousArchitecture  several fit and compute differently; `choices`
│   ├── CardError             model.yaml is not valid
│   ├── EngineError           no engine can run this model here
│   ├── PackError             a packed model is incomplete or was changed
│   ├── SignatureError        a signature is required, and the model has none that is accepted
│   └── GoldenError           the golden images disagree (exit code 4)
├── RequestError              the client can fix it
│   ├── MalformedRequest      no image part, or a request that cannot be parsed
│   ├── Unauthorized          no key, or not one of ours
│   ├── CrossOrigin           a page of another site calls a route that changes something
│   ├── NotFound              no such route, model or version
│   ├── TooLarge              more bytes, pixels, frames, parts or images than allowed
│   ├── WrongHost             the Host header names a host that is not this service
│   ├── TooSlow               the body did not arrive within the deadline
│   ├── UnsupportedImage      not an image, or not of an allowed format
│   ├── BrokenImage           an image of an allowed format that cannot be decoded
│   ├── SameProcess           a comparison request that has reached the process that sent it
│   └── RateLimited           the rate limit is exceeded; `retry_after` seconds
├── Unavailable               the client may try again after `retry_after` seconds
│   ├── Overloaded            no permit is free, or the wait would exceed the deadline
│   ├── TooManyCalls          the limit of calls of this kind is reached
│   ├── Draining              the service is shutting down
│   └── NotReady              no model is ready yet
├── DeadlineExceeded          the deadline of the request has passed
└── EngineFailed              the forward pass failed, or its thread has died

No error knows an HTTP status or an exit code: `http.problems` and `cli` map them, each in one table.
"""

from typing import TYPE_CHECKING

from pthserve.text import MESSAGE, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable


class PthserveError(Exception):
    """The root. `str(error)` is one sentence for people: what was wrong, where, and what to do.

    It is one line of bounded length without control characters, whatever it quotes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(quoted(message, MESSAGE))


class ModelError(PthserveError):
    """The model cannot be loaded."""


class WeightsError(ModelError):
    """The weights file is missing, truncated, foreign, unsafe, not finite, or not the expected one."""


class ArchitectureError(ModelError):
    """No architecture fits the state dict, or the named one does not."""


class AmbiguousArchitecture(ArchitectureError):
    """Several architectures fit the state dict and compute differently.

    choices: their names; those that compute the same are one choice.
    """

    def __init__(self, message: str, choices: "Iterable[Iterable[str]]" = ()) -> None:
        super().__init__(message)
        self.choices = tuple(map(tuple, choices))


class CardError(ModelError):
    """`model.yaml` is not valid."""


class EngineError(ModelError):
    """No engine can run this model on this machine with these settings."""


class PackError(ModelError):
    """A packed model is incomplete or was changed."""


class SignatureError(ModelError):
    """A signature is required, and the model has none, one of another key, or was changed since."""


class GoldenError(ModelError):
    """A golden image did not give its expected result."""


class RequestError(PthserveError):
    """The request is wrong, and the client can fix it."""


class MalformedRequest(RequestError):
    """There is no image part, or the request cannot be parsed."""


class Unauthorized(RequestError):
    """The request has no API key, or an unknown one."""


class CrossOrigin(RequestError):
    """A page of another site calls a route that changes something."""


class NotFound(RequestError):
    """No such route, model or version."""


class TooLarge(RequestError):
    """More bytes, pixels, frames, parts or images than are allowed."""


class WrongHost(RequestError):
    """The Host header names a host that is not this service."""


class TooSlow(RequestError):
    """The request body did not arrive before the deadline."""


class UnsupportedImage(RequestError):
    """The data is not an image, or not of an allowed format."""


class BrokenImage(RequestError):
    """The image has an allowed format but cannot be decoded."""


class SameProcess(RequestError):
    """A comparison request has reached the process that sent it; see the setting compare_with."""


class RateLimited(RequestError):
    """The rate limit is exceeded.

    Attributes:
        retry_after: Seconds until the next request is allowed.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(PthserveError):
    """The service cannot answer now.

    Attributes:
        retry_after: Seconds after which another attempt is likely to succeed.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """No permit is free, or the wait would exceed the deadline."""


class TooManyCalls(Unavailable):
    """The limit of calls of this kind is reached."""


class Draining(Unavailable):
    """The service is shutting down."""


class NotReady(Unavailable):
    """No model is ready yet."""


class DeadlineExceeded(PthserveError):
    """The deadline of the request has passed."""


class EngineFailed(PthserveError):
    """The forward pass failed, or the thread that runs it has died."""
