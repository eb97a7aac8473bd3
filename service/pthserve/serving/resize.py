"""Resize: follow the number of CPUs that the process may use, while requests are being answered."""

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
"""Seconds between looks at the limit. A look takes 0.2 ms."""


class Resize:
    """Keeps `predictor` at as many CPUs as the process may use. One event loop uses it.

    Whatever needs no engine follows at once. An engine on other threads is made and warmed beside the current
    one, which answers until then; requests that it has are answered by it.

    reload: with which it takes turns. on_change: called with the new number.
    """

    def __init__(self, predictor: Predictor, reload: Reload, on_change: Callable[[int], object]) -> None:
        self._predictor = predictor
        self._reload = reload
        self._on_change = on_change
        self._failed: tuple[Callable[[], Model | None], int] | None = None

    async def watch(self) -> None:
        """Look at the limit again and again; does not end."""
        while True:
            await asyncio.sleep(EVERY)
            await self.look()

    async def look(self) -> None:
        """Follow the limit as it is now."""
        before, cpus = self._predictor.cpus, cpu_quota()
        if cpus != before:
            log.info("the limit changed from %d to %d CPUs", before, cpus)
            self._predictor.resize(cpus)
            self._on_change(cpus)
        if self._reload.turn.locked():
            return  # the model is about to be replaced: the next look finds the one that comes
        async with self._reload.turn:
            model = self._predictor.current
            if model is None or model.threads_on(cpus) == model.forward.threads:
                return
            if self._failed is not None and (self._failed[0](), self._failed[1]) == (model, cpus):
                return
            try:
                await self._rebuild(model, cpus)
            except Exception as error:  # whatever an engine's library raises, running out of memory included
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
        """Replace `model` by the same one, on an engine for so many CPUs."""
        began = time.perf_counter()
        resized = await in_background(lambda: model.resized(cpus))
        # When the last request that holds the model is answered.
        weakref.finalize(resized, resized.forward.close).atexit = False
        await self._predictor.warm_up(resized)
        self._predictor.adopt(resized, self._predictor.golden)
        log.info(
            "the engine was rebuilt: it had %d threads and has %d now",
            model.forward.threads,
            resized.forward.threads,
            extra={"fields": {"cpus": cpus, "seconds": time.perf_counter() - began}},
        )
