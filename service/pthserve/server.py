"""Server: the whole service, with its ports, signals and shutdown."""

import asyncio
import gc
import logging
import math
import platform
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import uvloop
from starlette.concurrency import run_in_threadpool

import pthserve
from pthserve._compat import fastapi, uvicorn
from pthserve.access import request_log
from pthserve.access.bodies import Bodies
from pthserve.access.guard import Guard
from pthserve.errors import PthserveError
from pthserve.http import connection
from pthserve.loading.model import Model
from pthserve.metrics import BUILD_INFO
from pthserve.serving.background import in_background
from pthserve.serving.memory import give_back_when
from pthserve.serving.predictor import Predictor
from pthserve.serving.reload import Reload
from pthserve.serving.resize import Resize
from pthserve.serving.rollout import Rollout, api_key
from pthserve.settings import Settings
from pthserve.tracing import Tracer

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pthserve.grpc.server import Server as Rpc

log = logging.getLogger(__name__)

TURN = 0.0005
"""Python's switch interval in seconds while FastAPI is imported; see `_short_turns`."""

BACKLOG = 2048
"""Number of connections that the kernel accepts beyond those that the service has accepted."""

END_SECONDS = 3
"""Maximum time in seconds for the process to end after the drain and the deadline of its last request."""


class Server:
    """The service on its ports, from before its model is loaded until after its last response.

    Args:
        load: Loads and returns the model; called in a thread while the ports are already open (unless the
            setting `listen` is `ready`), and again for each reload.
        stage: Returns the current step of `load`, in words, or "".

    Attributes:
        ports: The ports: `http`, and `metrics` and `grpc` if they have their own.

    Raises:
        OSError: A port cannot be opened.
        PthserveError: The API keys cannot be read, or the package for traces is not installed.
    """

    def __init__(self, settings: Settings, load: Callable[[], Model], stage: Callable[[], str] = str) -> None:
        self._settings = settings
        self._load = load
        self._stage = stage
        self._guard = Guard(settings) if settings.api_keys or settings.rate_limit else None
        if settings.compare_api_key is not None:
            api_key(settings.compare_api_key)  # a file that cannot be read is an error of the start
        self._tracer = _tracer(settings.otlp_endpoint) if settings.otlp_endpoint else None
        self._loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._rpc: Rpc | None = None
        self._sockets: dict[str, socket.socket] = {}
        self.ports: dict[str, int] = {}
        with ExitStack() as unless_all_are_free:
            unless_all_are_free.callback(self._loop.close)
            for name, port in (("http", settings.port), ("metrics", settings.metrics_port)):
                if port is not None:
                    bound = unless_all_are_free.enter_context(_bound(settings.host, port))
                    if settings.listen == "early":
                        bound.listen(BACKLOG)
                    self._sockets[name], self.ports[name] = bound, bound.getsockname()[1]
            if settings.grpc_port is not None:  # last: a gRPC server that was never started is hard to close
                from pthserve.grpc.server import listen

                self._rpc = self._loop.run_until_complete(listen(settings))
                self.ports["grpc"] = self._rpc.port
            unless_all_are_free.pop_all()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._limited = False
        self._on_ready: Callable[[], object] = bool
        self._uvicorns: list[uvicorn.Server] = []
        self._ending: asyncio.Task[None] | None = None

    def run(self, on_ready: Callable[[], object] = bool) -> None:
        """Serve until a signal or `stop` ends the service.

        Args:
            on_ready: Called once a model is served.

        Raises:
            ModelError: The first model cannot be loaded.
        """
        self._on_ready = on_ready
        BUILD_INFO.info({"version": pthserve.__version__, "python": platform.python_version()})
        with (
            request_log.written(self._settings.log_format, self._settings.log_level),
            asyncio.Runner(loop_factory=lambda: self._loop) as runner,
        ):
            try:
                runner.run(self._serve())
            finally:
                if self._tracer is not None:
                    self._tracer.close()
                if self._limited:
                    signal.setitimer(signal.ITIMER_REAL, 0)

    def stop(self) -> None:
        """Drain and end. A second call skips the drain, a third ends open connections. Thread-safe."""
        self._loop.call_soon_threadsafe(self._on_stop)

    async def _serve(self) -> None:
        predictor = Predictor(self._settings)
        reload = Reload(predictor, self._settings, self._load, self._stage)
        try:
            with self._signals(reload):
                loading = asyncio.create_task(reload.first())
                comparing = None
                if self._settings.compare_with is not None:
                    comparing = asyncio.create_task(Rollout(predictor, self._settings).run())
                giving = asyncio.create_task(give_back_when(lambda: not predictor.admission.inflight))
                await self._until_stopped(predictor, reload, loading)
                giving.cancel()
                if comparing is not None:
                    comparing.cancel()
        finally:
            predictor.close()
            reload.close()
        if loading.done():
            loading.result()  # raises what went wrong

    async def _until_stopped(
        self, predictor: Predictor, reload: Reload, loading: "asyncio.Task[None]"
    ) -> None:
        bodies = Bodies(self._settings.max_body, predictor.cpus)
        apps = await in_background(partial(self._apps, predictor, reload, bodies))
        resizing = None
        if self._settings.threads is None:
            resizing = asyncio.create_task(Resize(predictor, reload, bodies.resize).watch())
        importing = asyncio.create_task(_import_late(loading, apps["http"]))
        if self._settings.listen == "ready":
            await self._until_loaded(loading)
        self._uvicorns = [
            uvicorn.Server(
                apps[name], connection.factory(self._settings.root_path or ""), self._settings.deadline
            )
            for name in self._sockets
        ]
        serving = [
            asyncio.create_task(server.serve([listening]))
            for server, listening in zip(self._uvicorns, self._sockets.values(), strict=True)
        ]
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        log.info("listening on http://%s:%d", host, self.ports["http"])
        if self._rpc is not None:
            await self._rpc.start(predictor, reload.again, self._guard, self._tracer, bodies)
            log.info("listening for gRPC on %s:%d", host, self._rpc.port)
        loading.add_done_callback(
            lambda done: self._stop.set() if done.cancelled() or done.exception() else self._on_ready()
        )
        await self._stop.wait()
        predictor.drain()
        if predictor.current is not None:
            log.info("draining for up to %g s", self._settings.drain_seconds)
            await _wait(self._hurry, self._settings.drain_seconds)
        for server in self._uvicorns:
            server.should_exit = True
        if self._rpc is not None:
            await self._rpc.stop(self._settings.deadline)
        await asyncio.gather(*serving)
        importing.cancel()
        if resizing is not None:
            resizing.cancel()

    async def _until_loaded(self, loading: "asyncio.Task[None]") -> None:
        """Wait until the model is loaded. If that fails, or on a signal, the ports of HTTP stay closed."""
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait([loading, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not loading.done() or loading.cancelled() or loading.exception() is not None:
            for bound in self._sockets.values():
                bound.close()
            self._sockets.clear()

    def _apps(self, predictor: Predictor, reload: Reload, bodies: Bodies) -> dict[str, "FastAPI"]:
        """Return the application of each port, by the name of the port.

        FastAPI is imported here, which takes 0.1 s of CPU, in a thread while the model is loading. The
        imports of the load come first: it then compiles and runs the model, which rarely needs the
        interpreter.
        """
        if self._settings.engine != "torch":
            from pthserve.engines.openvino_graph import core

            core()
        with _short_turns(), fastapi.validators_on_first_use():
            from pthserve.http.app import create_app, create_metrics_app

            app = create_app(predictor, self._settings, reload.again, self._guard, self._tracer, bodies)
            scraped = {"metrics": create_metrics_app(self._settings)} if "metrics" in self.ports else {}
            return {"http": app, **scraped}

    @contextmanager
    def _signals(self, reload: Reload) -> Iterator[None]:
        """Handle signals until the block ends.

        SIGTERM drains and ends the service. SIGINT ends it without a drain, since a person sends it and no
        load balancer is involved. SIGHUP reloads the model.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {
            signal.SIGTERM: self._on_terminate,
            signal.SIGINT: self._on_interrupt,
            signal.SIGHUP: reload.start,
        }
        for number, handler in handlers.items():
            self._loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                self._loop.remove_signal_handler(number)

    def _on_stop(self) -> None:
        if self._hurry.is_set():
            for server in self._uvicorns:
                server.force_exit = True
            if self._rpc is not None:
                self._ending = self._loop.create_task(self._rpc.stop(0))
        elif self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _on_terminate(self) -> None:
        self._end_within(self._settings.drain_seconds + self._settings.deadline)
        self._on_stop()

    def _on_interrupt(self) -> None:
        self._end_within(self._settings.deadline)
        self._on_stop()
        self._hurry.set()

    def _end_within(self, seconds: float) -> None:
        """Let the kernel end the process with SIGALRM, END_SECONDS after the given time has passed.

        So the process ends even if a thread hangs, with or without the interpreter's lock.
        """
        if not self._limited:
            self._limited = True
            signal.setitimer(signal.ITIMER_REAL, math.ceil(seconds) + END_SECONDS)


def _tracer(endpoint: str) -> Tracer:
    try:
        from pthserve.access.otlp import Otlp  # imported only if it is used
    except ModuleNotFoundError as error:
        raise PthserveError(
            f"otlp_endpoint needs {error.name}, which is not installed: `pip install 'pthserve[otlp]'`"
        ) from error
    return Otlp(endpoint)


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound but refuses connections until `listen`.

    `socket.create_server` would listen at once, and a connection that is accepted and closed loses a request.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family == socket.AF_INET6 and socket.has_dualstack_ipv6():
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    bound.setblocking(False)
    return bound


@contextmanager
def _short_turns() -> Iterator[None]:
    """Switch threads more often, and do not collect garbage, until the block ends; for large imports.

    With the default switch interval of 5 ms, the load would wait that long after each of its system calls.
    The objects that exist at the end of the block will stay, so later collections need not visit them.
    """
    interval, collecting = sys.getswitchinterval(), gc.isenabled()
    sys.setswitchinterval(TURN)
    gc.disable()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.freeze()  # until `Reload.close`
        if collecting:
            gc.enable()


async def _import_late(loading: "asyncio.Task[None]", app: "FastAPI") -> None:
    """Import modules that requests need, which a request could not do if file descriptors have run out.

    anyio imports a part of asyncio when it first runs a function in a thread, as a scrape does, and the first
    schema imports more.
    """
    await run_in_threadpool(bool)
    await asyncio.wait([loading])
    await run_in_threadpool(app.openapi)
    log.debug("imported the modules that requests need")


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
