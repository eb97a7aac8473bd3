"""Every error that the service raises on purpose.

PthserveError
├── ModelError                the model cannot be loaded (exit code 3)
│   ├── WeightsError          the weights file: missing, truncated, foreign, unsafe, wrong digest, not finite
│   ├── ArchitectureError     no architecture fits the state dict, or the named one does not
│   │   └── AmbiguousArchitecture  several fit and compute differently; `choices`
│   ├── CardError             model.yaml says something that cannot be
│   ├── EngineError           no engine can run this model here
│   ├── PackError             a packed model is incomplete or was changed
│   └── GoldenError           the golden images disagree (exit code 4)
├── RequestError              the client can mend it
│   ├── MalformedRequest      no image part, or a request that cannot be parsed
│   ├── Unauthorized          no key, or not one of ours
│   ├── CrossOrigin           what changes something, from a page of another site
│   ├── NotFound              no such route, model or version
│   ├── TooLarge              more bytes, pixels, frames, parts or images than allowed
│   ├── WrongHost             the Host header names a host that is not this service
│   ├── TooSlow               the body did not arrive within the deadline
│   ├── UnsupportedImage      not an image, or not of an allowed format
│   ├── BrokenImage           an image of an allowed format that cannot be decoded
│   └── RateLimited           this key's tokens are spent; `retry_after` seconds
├── Unavailable               the client may try again after `retry_after` seconds
│   ├── Overloaded            no permit is free, or the wait would outlast the deadline
│   ├── TooManyCalls          as many calls of this kind are being answered as may be
│   ├── Draining              on the way out
│   └── NotReady              no model is ready yet
├── DeadlineExceeded          the answer would come too late to be useful
└── EngineFailed              the forward pass raised, or its thread is gone

No error knows an HTTP status or an exit code: `http.problems` and `cli` map them, each in one table.
"""

from collections.abc import Sequence

from pthserve.text import MESSAGE, quoted


class PthserveError(Exception):
    """The root. `str(error)` is one sentence for a person: what was wrong, where, and what to do.

    Whatever it quotes, it is one line, without control characters, and not longer than a person would read.
    """

    def __init__(self, message: str) -> None:
        super().__init__(quoted(message, MESSAGE))


class ModelError(PthserveError):
    """The model cannot be loaded."""


class WeightsError(ModelError):
    """The weights file is missing, truncated, foreign, unsafe, not finite, or not the one that was pinned."""


class ArchitectureError(ModelError):
    """No architecture fits the state dict, or the named one does not."""


class AmbiguousArchitecture(ArchitectureError):
    """Several architectures fit the state dict and compute differently.

    choices: their names; those that compute the same are one choice.
    """

    def __init__(self, message: str, choices: Sequence[Sequence[str]]) -> None:
        super().__init__(message)
        self.choices = tuple(map(tuple, choices))


class CardError(ModelError):
    """`model.yaml` says something that cannot be."""


class EngineError(ModelError):
    """No engine can run this model on this machine as asked."""


class PackError(ModelError):
    """A packed model is incomplete or was changed."""


class GoldenError(ModelError):
    """The golden images disagree with their known answers."""


class RequestError(PthserveError):
    """The request is at fault, and the client can mend it."""


class MalformedRequest(RequestError):
    """There is no image part, or the request cannot be parsed."""


class Unauthorized(RequestError):
    """The request carries no API key, or not one of ours."""


class CrossOrigin(RequestError):
    """A page of another site has a browser send what changes something."""


class NotFound(RequestError):
    """No such route, model or version."""


class TooLarge(RequestError):
    """More bytes, pixels, frames, parts or images than are allowed."""


class WrongHost(RequestError):
    """The Host header names a host that is not this service."""


class TooSlow(RequestError):
    """The request's body did not arrive within its deadline."""


class UnsupportedImage(RequestError):
    """The bytes are no image, or not of an allowed format."""


class BrokenImage(RequestError):
    """The bytes are an image of an allowed format, but cannot be decoded."""


class RateLimited(RequestError):
    """The key's tokens are spent.

    retry_after: seconds until the next one.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(PthserveError):
    """Not now.

    retry_after: seconds after which a try is likely to succeed.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """No permit is free, or the wait would outlast the deadline."""


class TooManyCalls(Unavailable):
    """As many calls of this kind are being answered as may be."""


class Draining(Unavailable):
    """The service is on its way out."""


class NotReady(Unavailable):
    """No model is ready yet."""


class DeadlineExceeded(PthserveError):
    """The answer would come too late to be useful."""


class EngineFailed(PthserveError):
    """The forward pass raised, or the thread that runs it is gone."""
