"""OpenVINO's infer requests for one graph, and which of them a call gets."""

import threading
from typing import Any

import numpy as np

from pthserve.engines.base import Images, Logits


class Lanes:
    """Runs batches on requests that share the engine's threads, or on one that has all of them.

    A pass on many threads waits at each layer for the slowest of them; passes on some of the threads each use
    the time that the others wait. So a single image gets all threads, for the lowest latency. A larger batch
    that is alone is split, and concurrent calls have one lane each.

    Args:
        one: A request for one image, on all threads; None if there is none.
        shared: Requests for any number of images, each on its part of the threads; one per lane.
    """

    def __init__(self, one: Any, shared: list[Any]) -> None:
        self.one = one
        self._shared = shared
        self._free = threading.Condition()
        self._calls = 0

    def __call__(self, batch: Images, *, divided: bool = True) -> Logits:
        """Return the logits of `batch`. Any thread may call; beyond the number of lanes it waits.

        Args:
            divided: Give a call that is alone more than one lane. All of them are taken until it ends, so it
                delays a second caller.
        """
        taken = self._take(len(batch), divided)
        try:
            return _run(taken, batch)
        finally:
            self._give_back(taken)

    def _take(self, images: int, divided: bool) -> list[Any]:
        with self._free:
            alone = divided and not self._calls
            self._calls += 1
            if alone and images == 1 and self.one is not None:
                return [self.one]
            while not self._shared:
                self._free.wait()
            lanes = min(images, len(self._shared)) if alone else 1
            return [self._shared.pop() for _ in range(lanes)]

    def _give_back(self, taken: list[Any]) -> None:
        with self._free:
            self._calls -= 1
            self._shared += [request for request in taken if request is not self.one]
            self._free.notify(len(taken))


def _run(requests: list[Any], batch: Images) -> Logits:
    """Return the logits of `batch`, which is divided among `requests`."""
    share = -(-len(batch) // len(requests))
    first, *others = (np.ascontiguousarray(batch[at : at + share]) for at in range(0, len(batch), share))
    started = list(zip(requests[1:], others, strict=False))
    for request, part in started:
        request.start_async([part], share_inputs=True)
    try:
        logits: Logits = requests[0].infer([first], share_inputs=True)[0]
    finally:
        for request, _ in started:
            request.wait()
    if not started:
        return logits
    return np.concatenate([logits, *(request.get_output_tensor(0).data for request, _ in started)])
