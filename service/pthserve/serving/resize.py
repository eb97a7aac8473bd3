"""Resize: adapt to changes in the number of CPUs that the process may use, without interrupting requests."""

import asyncio
import logging
import time
import weakref
from collections.abc import Callable

from pthserve.cpus import cpu_quota
from pthserve.errors import EngineError
from pthserve.loading.model import Model
from pthserve.serving.background import in_background
from pthserve.serving.predictor import Predictor
from pthserve.serving.reload import Reload
from pthserve.text import MESSAGE, quoted

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two checks of the limit. A check takes 0.2 ms."""


class Resize:
    """Makes `predictor` use as many CPUs as the process may use. Only one event loop may use it.

    Everything but the engine changes at once. An engine with the new number of threads is built and warmed up
    while the current one still answers; requests that have started on the current one finish there.

    Args:
        reload: Its lock prevents a reload at the same time.
        on_change: Called with the new number of CPUs.
    """

    def __init__(self, predictor: Predictor, reload: Reload, on_change: Callable[[int], object]) -> None:
        self._predictor = predictor
        self._reload = reload
        self._on_change = on_change
        self._failed: tuple[Callable[[], Model | None], int] | None = None

    async def watch(self) -> None:
        """Check the limit every EVERY seconds; never returns."""
        while True:
            await asyncio.sleep(EVERY)
            await self.look()

    async def look(self) -> None:
        """Check the limit and adapt to it."""
        before, cpus = self._predictor.cpus, cpu_quota()
        if cpus != before:
            log.info("the limit changed from %d to %d CPUs", before, cpus)
            self._predictor.resize(cpus)
            self._on_change(cpus)
        if self._reload.turn.locked():
            return  # the model is being replaced; the next check handles the new one
        async with self._reload.turn:
            model = self._predictor.current
            if model is None or model.threads_on(cpus) == model.forward.threads:
                return
            if self._failed is not None and (self._failed[0](), self._failed[1]) == (model, cpus):
                return
            try:
                await self._rebuild(model, cpus)
            except Exception as error:  # any error of the engine's library, including a lack of memory
                self._failed = weakref.ref(model), cpus
                log.log(
                    logging.ERROR,
                    "the engine was not rebuilt for %d CPUs, and keeps its %d threads: %s",
                    cpus,
                    model.forward.threads,
                    quoted(f"{type(error).__name__}: {error}", MESSAGE),
                    exc_info=not isinstance(error, EngineError),
                )

    async def _rebuild(self, model: Model, cpus: int) -> None:
        """Replace `model` by the same model with an engine for `cpus` CPUs."""
        began = time.perf_counter()
        resized = await in_background(lambda: model.resized(cpus))
        # Close the engine after the last request of the model.
        weakref.finalize(resized, resized.forward.close).atexit = False
        await self._predictor.warm_up(resized)
        self._predictor.adopt(resized, self._predictor.golden)
        log.info(
            "the engine was rebuilt: the number of threads was %d and is %d now",
            model.forward.threads,
            resized.forward.threads,
            extra={"fields": {"cpus": cpus, "seconds": time.perf_counter() - began}},
        )
