"""Reload: load a model, warm it up, check it, and use it instead of the current one.

The first model is loaded in the same way, except that it replaces none.
"""

import asyncio
import gc
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pthserve.addresses import shown
from pthserve.engines.base import Completes
from pthserve.errors import EngineError, GoldenError, ModelError
from pthserve.files.fingerprint import Fingerprint, fingerprint
from pthserve.loading.golden import apply_golden_policy
from pthserve.loading.model import Model
from pthserve.metrics import MODEL_LOAD_SECONDS, MODEL_LOADS
from pthserve.serving.background import in_background
from pthserve.serving.predictor import Predictor
from pthserve.serving.shadow import Shadow
from pthserve.settings import Settings
from pthserve.text import MESSAGE, quoted

log = logging.getLogger(__name__)

LOOK = 10.0
"""Seconds between two checks of the model's files if `reload_interval` is 0, only to report a change."""

STAGE = 0.2
"""Seconds between two updates of the current step of loading."""


@dataclass(frozen=True, slots=True, eq=False)
class _Checked:
    model: Model
    golden: str
    seconds: float


class Reload:
    """Loads and reloads the model of `predictor`. Only one event loop may use it.

    A new model must have the same name, the same task, and as many classes or the same values as the current
    one: clients use them in URLs and as indices. Labels, version, preprocessing and architecture may differ.

    Args:
        load: Loads and returns the model; called in its own thread.
        stage: Returns the current step of loading, in words, or "".

    Attributes:
        turn: A lock, held while the model is being replaced.
    """

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        load: Callable[[], Model],
        stage: Callable[[], str] = str,
    ) -> None:
        self._predictor = predictor
        self._settings = settings
        self._load = load
        self._stage = stage
        self._shown = shown(settings.model)
        self._look = partial(fingerprint, Path(settings.model))
        self._tried: Fingerprint | None = None
        self._served: Fingerprint | None = None
        self.turn = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._completing: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()

    async def first(self) -> None:
        """Load the first model, and start to watch its files; raises ModelError."""
        async with self.turn:
            with _attempt():
                checked = await self._load_and_check()
                # The objects that exist now will stay, so later garbage collections need not visit them.
                gc.collect()
                gc.freeze()
                self._adopt(checked)
            log.info("ready", extra={"fields": _fields(checked)})
        self._watching = asyncio.create_task(self._watch())

    def close(self) -> None:
        """Stop watching the files and completing an engine, and undo `gc.freeze`.

        Frozen objects are not freed when the interpreter ends, and libraries would then report leaks.
        """
        for task in (self._watching, self._completing):
            if task is not None:
                task.cancel()
        gc.unfreeze()

    async def again(self) -> None:
        """Reload the model from its files. The reload continues if this call is cancelled.

        Raises:
            ModelError: The new model is refused; the old one stays in use.
        """
        await asyncio.shield(self.start())

    def start(self) -> "asyncio.Task[None]":
        """Start a reload and return its task. Calls before the reload begins share the same task."""
        if self._next is None:
            self._next = asyncio.create_task(self._replace())
            self._next.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._next

    async def _tell_stage(self) -> None:
        """Keep the reason for not being ready up to date while the model is loading."""
        while True:
            self._predictor.record_loading(self._stage())
            await asyncio.sleep(STAGE)

    async def _watch(self) -> None:
        """Report that files have changed; with `reload_interval`, reload the model then.

        It is reloaded once the files are the same in two checks in a row. If that fails, the same files are
        not tried again.
        """
        interval, before = self._settings.reload_interval, self._tried
        while True:
            await asyncio.sleep(interval or LOOK)
            served = self._served
            now = await in_background(self._look)
            if self._served is served:  # otherwise a reload has looked at the files since
                self._report(now)
            if interval and now == before and now != self._tried:
                with suppress(ModelError):  # `_replace` has logged it
                    await self.again()
            before = now

    def _report(self, now: Fingerprint | None) -> None:
        """Record, and log, whether the files differ from those that the served model was loaded from."""
        changed = now != self._served
        if changed and not self._predictor.files_changed and not self._settings.reload_interval:
            log.warning(
                "the files of %s have changed; the model loaded from them before stays in use until a "
                "reload: "
                "send SIGHUP to load the changed files",
                self._shown,
            )
        self._predictor.record_files_changed(changed)

    async def _replace(self) -> None:
        async with self.turn:
            self._next = None
            await self._completed()
            outcome: dict[str, object] = {"time": datetime.now(UTC).isoformat(timespec="seconds")}
            try:
                with _attempt():
                    checked = await self._load_and_check()
                    await self._check_replaces(checked.model)
                    if self._settings.shadow:
                        outcome["shadow"] = await self._shadow(checked.model)
                    self._gone = _gone(self._predictor.model())
                    self._adopt(checked)
            except Exception as error:
                expected = isinstance(error, ModelError)
                message = str(error) if expected else f"it cannot be run: {type(error).__name__}: {error}"
                message = quoted(message, MESSAGE)
                self._predictor.record_reload({"result": _result(error), **outcome, "error": message})
                log.log(logging.ERROR, "the model was not replaced: %s", message, exc_info=not expected)
                if expected:
                    raise
                raise EngineError(f"{self._shown}: {message}") from error
            outcome |= {"seconds": round(checked.seconds, 3), "digest": checked.model.digest}
            self._predictor.record_reload({"result": "ok", **outcome})
            log.info("the model was replaced", extra={"fields": _fields(checked)})
            self._completing = asyncio.create_task(self._complete(checked.model))

    async def _complete(self, model: Model) -> None:
        """Give the engine what it was made without to save memory, once the model before it is gone."""
        if not isinstance(model.forward, Completes):
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), self._settings.deadline)
        try:
            await in_background(model.forward.complete)
        except EngineError as error:
            log.warning("single images are computed slower than they could be: %s", error)

    async def _completed(self) -> None:
        """Complete the engine in use at once, if that is still to come: another will be made beside it."""
        if self._completing is not None:
            self._gone.set()
            await asyncio.wait([self._completing])
            self._completing = None

    async def _load_and_check(self) -> _Checked:
        """Load a model, warm it up, and check it with its golden images as the settings require."""
        began = time.perf_counter()
        self._tried = await in_background(self._look)
        telling = asyncio.create_task(self._tell_stage())
        try:
            model = await in_background(self._load)
        finally:
            telling.cancel()
        # Close the engine after the last request of the model, or at once if the model is refused.
        weakref.finalize(model, model.forward.close).atexit = False
        await self._predictor.warm_up(model)
        golden = await in_background(partial(apply_golden_policy, model, self._settings))
        return _Checked(model, golden, time.perf_counter() - began)

    def _adopt(self, checked: _Checked) -> None:
        self._predictor.adopt(checked.model, checked.golden)
        for inferred in checked.model.inferred:
            if inferred.uncertain:
                log.warning("%s", quoted(str(inferred), MESSAGE))
        MODEL_LOAD_SECONDS.set(checked.seconds)
        self._served = self._tried
        self._report(self._served)

    async def _check_replaces(self, model: Model) -> None:
        """Raise ModelError if `model` cannot replace the current model; see `Reload`."""
        source, served = self._shown, self._predictor.model()
        if await in_background(self._look) != self._tried:
            raise ModelError(f"{source}: changed while it was being loaded")
        if model.task.name != served.task.name:
            raise ModelError(
                f"{source}: the task of the new model is {model.task.name}, but that of the current one is "
                f"{served.task.name}; restart the service to change the task"
            )
        if model.does != served.does:
            what = "classes" if model.task.has_classes else "outputs"
            raise ModelError(
                f"{source}: the new model {model.does}, but the current one {served.does}; restart the "
                f"service to change the {what}"
            )
        if model.name != served.name:
            raise ModelError(
                f"{source}: the new model is named {model.name!r}, but the current one {served.name!r}; "
                "restart the service to change the name, or set it in model.yaml or with --name"
            )

    async def _shadow(self, model: Model) -> dict[str, object]:
        """Compare `model` with the current one on live traffic.

        Raises:
            ModelError: They agree too rarely.
        """
        shadow = Shadow(self._predictor, model, self._settings.shadow)
        await shadow.run()
        least = self._settings.shadow_agreement
        if shadow.agreement is not None and shadow.agreement < least:
            raise ModelError(
                f"{self._shown}: the new model gave the same answer as the current one for "
                f"{shadow.agreement:.1%} of {shadow.images} live images; at least {least:.1%} is required"
            )
        return {"images": shadow.images, "agreement": shadow.agreement}


def _gone(model: Model) -> asyncio.Event:
    """Return an event that is set after the last request of `model`."""
    gone, loop = asyncio.Event(), asyncio.get_running_loop()

    def notify() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(gone.set)

    weakref.finalize(model, notify).atexit = False
    return gone


@contextmanager
def _attempt() -> Iterator[None]:
    """Count an attempt to load a model, by its result."""
    try:
        yield
    except Exception as error:
        MODEL_LOADS.labels(_result(error)).inc()
        raise
    MODEL_LOADS.labels("ok").inc()


def _result(error: Exception) -> str:
    return "golden" if isinstance(error, GoldenError) else "failed"


def _fields(checked: _Checked) -> dict[str, object]:
    model = checked.model
    return {
        "name": model.name,
        "digest": model.digest,
        "engine": model.forward.name,
        "seconds": checked.seconds,
    }
