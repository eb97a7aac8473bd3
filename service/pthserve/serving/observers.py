"""Observers: functions that receive the images and the predictions of live requests, after the answer."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pthserve.errors import EngineFailed
from pthserve.serving.prediction import Input, Prediction

log = logging.getLogger(__name__)

Observer = Callable[[Sequence[Input], Sequence[Prediction] | None], None]
"""Called with the images and the predictions of a request; without predictions if the forward pass failed."""


class Observers:
    """The observers of a predictor. One that raises is logged, and the request is answered all the same."""

    def __init__(self) -> None:
        self._observers: tuple[Observer, ...] = ()

    def __len__(self) -> int:
        return len(self._observers)

    def add(self, observer: Observer) -> None:
        """Call `observer` for each request from now on."""
        self._observers = (*self._observers, observer)

    @contextmanager
    def during(self, observer: Observer) -> Iterator[None]:
        """Call `observer` for each request until the block ends."""
        self.add(observer)
        try:
            yield
        finally:
            self._observers = tuple(one for one in self._observers if one != observer)

    @contextmanager
    def of_failures(self, images: Sequence[Input]) -> Iterator[None]:
        """Tell the observers if the forward pass of `images` fails in the block."""
        try:
            yield
        except EngineFailed:
            self.notify(images, None)
            raise

    def notify(self, images: Sequence[Input], predictions: Sequence[Prediction] | None) -> None:
        """Call all observers."""
        for observer in self._observers:
            try:
                observer(images, predictions)
            except Exception:
                log.exception("an observer of answers failed")
