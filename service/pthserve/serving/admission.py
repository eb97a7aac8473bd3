"""Admission: accept a request only if it gets permits for its images and its predicted wait is short."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pthserve.errors import Overloaded, TooLarge
from pthserve.metrics import Rejection, count_rejection

SHARE_OF_DEADLINE = 0.8
"""Maximum predicted wait as a share of the deadline; the rest is a margin for errors of the prediction."""


class Admission:
    """Counts the images that are admitted and not yet answered. Only one event loop may use it.

    Args:
        limit: Maximum number of images at the same time.
        seconds_for: Returns the seconds that the service needs for a number of images, as measured.
    """

    def __init__(self, limit: int, seconds_for: Callable[[int], float]) -> None:
        self._limit = limit
        self._seconds_for = seconds_for
        self.inflight = 0

    def check(self, images: int, deadline: float) -> None:
        """Check whether `admit` would succeed now.

        Args:
            images: Number of images of the request.
            deadline: Seconds until its deadline.

        Raises:
            Overloaded: There are too few permits, or the predicted wait is too long.
            TooLarge: The request has more images than there are permits in total.
        """
        if images > self._limit:
            raise TooLarge(f"the request has {images} images; the limit is {self._limit}")
        if self.inflight + images > self._limit:
            reason = Rejection.PERMITS
        elif self.inflight and self._seconds_for(self.inflight + images) > SHARE_OF_DEADLINE * deadline:
            # An idle service admits any request, or an estimate that is too high could never be corrected.
            reason = Rejection.WAIT
        else:
            return
        count_rejection(reason)
        wait = self._seconds_for(self.inflight)
        raise Overloaded(
            f"the service is overloaded: {self.inflight} images are queued, which takes about {wait:.1f} s; "
            "try again after that",
            retry_after=wait,
        )

    @contextmanager
    def admit(self, images: int, deadline: float) -> Iterator[None]:
        """Take one permit per image until the block ends; raises as `check`."""
        self.check(images, deadline)
        self.inflight += images
        try:
            yield
        finally:
            self.inflight -= images
