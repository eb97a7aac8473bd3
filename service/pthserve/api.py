"""The Python API: load a model, call it with images, serve it from a script or a notebook."""

import asyncio
import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from pthserve.loading.golden import apply_golden_policy
from pthserve.loading.load import load as load_model
from pthserve.loading.model import Model
from pthserve.options import ModelOptions
from pthserve.settings import Settings

if TYPE_CHECKING:
    from pthserve.server import Server


def load(source: str | PathLike[str], *, tune_budget: float = 0.0, **options: Any) -> Model:
    """The model in `source`, ready to be called with images.

    ```python
    model = pthserve.load("model.pth", precision="bf16")
    print(model("cat.jpg").label)
    ```

    Args:
        source: a weights file (.pth, .pt or .safetensors), a folder with one and perhaps a `model.yaml`, or a
            folder that `pthserve pack` wrote.
        tune_budget: seconds to measure which engine and batch size are fastest here. The default measures
            nothing, unlike `pthserve serve`.
        options: fields of `ModelOptions`, such as `precision`, `engine`, `max_batch`, `task` or `allow_code`.
            The environment is not read.

    Raises:
        ModelError: it cannot be loaded: the message says what is wrong, where, and what to do. GoldenError
            where the golden images disagree, unless the option `golden` is "warn" or "off".
        ValueError: there is no such option, or its value is not allowed.
    """
    chosen = ModelOptions(tune_budget=tune_budget, **options)
    model = load_model(fspath(source), chosen)
    try:
        apply_golden_policy(model, chosen)
    except BaseException:
        model.close()
        raise
    return model


@overload
def serve(model: Model, *, block: Literal[True] = True, **settings: Any) -> None: ...
@overload
def serve(model: Model, *, block: Literal[False], **settings: Any) -> "Serving": ...
@overload
def serve(model: Model, *, block: bool, **settings: Any) -> "Serving | None": ...
def serve(model: Model, *, block: bool = True, **settings: Any) -> "Serving | None":
    """Serve `model` over HTTP, with all that `pthserve serve` has.

    ```python
    with pthserve.serve(model, port=0, block=False) as service:
        print(service.address)
    ```

    A reload loads the model again from where it came from. One process serves one model at a time.

    Args:
        block: return only when the service has ended, by SIGTERM or Ctrl-C. False, as a notebook needs,
            serves in a thread and returns when the service is ready.
        settings: fields of `Settings` (docs/settings.md), such as `host`, `port` or `api_keys`; those that
            are left out come from the environment. Those that `ModelOptions` has too belong to `load`.

    Returns:
        The running service, where `block` is False.

    Raises:
        TypeError: a setting belongs to `load`.
        ValueError: there is no such setting, or its value is not allowed.
        OSError: the port cannot be had.
        RuntimeError: `block` is True where an event loop runs already, as in a notebook.
    """
    settled = sorted(settings.keys() & ModelOptions.model_fields.keys())
    if settled:
        raise TypeError(f"{', '.join(settled)}: settled when the model was loaded; give it to pthserve.load")
    if block and _has_event_loop():
        raise RuntimeError("an event loop runs here, as in a notebook: call pthserve.serve(..., block=False)")
    loaded = {name: getattr(model.options, name) for name in ModelOptions.model_fields}
    source = str(model.source or model.name)
    chosen = Settings.read({"model": source, **loaded, **settings})
    given = [model]

    def bring() -> Model:
        if given:
            return given.pop()
        return load_model(source, model.options) if model.source else model

    from pthserve.server import Server

    if not block:
        return Serving(partial(Server, chosen, bring), chosen)
    Server(chosen, bring).run()
    return None


class Serving:
    """A service that runs in a thread of this process. As a context manager, it is stopped at the end.

    address: where it answers, such as http://127.0.0.1:8000.
    """

    def __init__(self, make: "Callable[[], Server]", settings: Settings) -> None:
        """Start the server that `make` makes, and wait until it is ready; raises what keeps it from that."""
        self.address = ""
        self._make = make
        self._server: Server | None = None
        self._made, self._ready = threading.Event(), threading.Event()
        self._ended: Future[None] = Future()
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
        self._host = f"[{host}]" if ":" in host else host
        threading.Thread(target=self._run, name="pthserve", daemon=True).start()
        atexit.register(self.stop)
        try:
            self._ready.wait()
        except BaseException:  # KeyboardInterrupt
            self.stop()
            raise
        if self._ended.done():
            self.stop()

    def stop(self) -> None:
        """End the service once the requests that it has are answered; again, it does nothing more.

        Raises: what the service itself ended with.
        """
        atexit.unregister(self.stop)
        self._made.wait()
        if self._server is not None:
            with suppress(RuntimeError):  # it has ended, and its event loop is closed
                for _ in range(2):  # the second ends the wait for load balancers: there are none here
                    self._server.stop()
        self._ended.result()

    def _run(self) -> None:
        try:
            # In this thread: in a notebook's own, an event loop runs already.
            self._server = self._make()
            self.address = f"http://{self._host}:{self._server.ports['http']}"
            self._made.set()
            self._server.run(self._ready.set)
        except BaseException as error:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)
        finally:
            self._made.set()
            self._ready.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._ended.done() else "running"
        return f"<pthserve.Serving {self.address} {state}>"


def _has_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
