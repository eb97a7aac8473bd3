"""Admission: who gets in. A permit must be free, and the wait that the measurements predict must fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pthserve.errors import Overloaded, TooLarge
from pthserve.metrics import Rejection, count_rejection

SHARE_OF_DEADLINE = 0.8
"""How much of its deadline a request may be predicted to wait; the rest is for what no prediction knows."""


class Admission:
    """Counts the images that were admitted and are not yet answered. One event loop uses it.

    limit: most images at once.
    seconds_for: how many images, to the seconds that the service takes for so many, as measured.
    """

    def __init__(self, limit: int, seconds_for: Callable[[int], float]) -> None:
        self._limit = limit
        self._seconds_for = seconds_for
        self.inflight = 0

    def check(self, images: int, deadline: float) -> None:
        """Raise what `admit` would raise now, and take nothing.

        images: how many the request has; deadline: seconds it has left.
        Raises Overloaded, or TooLarge where so many never get in.
        """
        if images > self._limit:
            raise TooLarge(f"the request has {images} images; the limit is {self._limit}")
        if self.inflight + images > self._limit:
            reason = Rejection.PERMITS
        elif self.inflight and self._seconds_for(self.inflight + images) > SHARE_OF_DEADLINE * deadline:
            reason = (
                Rejection.WAIT
            )  # an idle service lets one in however long it takes: that is how it learns
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
        """A permit an image, given back when the block is left. Raises what `check` raises."""
        self.check(images, deadline)
        self.inflight += images
        try:
            yield
        finally:
            self.inflight -= images
