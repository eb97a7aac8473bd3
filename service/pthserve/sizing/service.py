"""Service: `pthserve serve` as a process on some of the cores, and loads on it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pthserve.bench.client import Target
from pthserve.bench.load import Point, Round, measure_all
from pthserve.cpus import cpu_quota
from pthserve.errors import PthserveError
from pthserve.options import ModelOptions
from pthserve.settings import VARIABLE, Settings

WARM_UP = 0.5
"""Seconds of load before each measurement."""
TIMEOUT = 600.0
"""Seconds after which a request counts as failed. A slow model answers the last of many clients late."""
START = 900.0
"""Seconds within which the service must be ready; it may have to pack and tune the model."""
STOP = 20.0
"""Seconds within which the service must end."""


@dataclass(slots=True)
class Service:
    """A running service.

    Attributes:
        address: Its URL.
        ready: Seconds from its start until it was ready.
        max_batch: The setting; None for that of the plan.
        shared: Whether the loads are sent from the cores of the service, since there are no others.
    """

    address: str
    ready: float
    max_batch: int | None
    shared: bool

    def info(self) -> Mapping[str, Any]:
        """The content of `/info`."""
        values: Mapping[str, Any] = (
            httpx.get(f"{self.address}/info", timeout=TIMEOUT).raise_for_status().json()
        )
        return values

    def samples(self) -> Mapping[str, float]:
        """The samples of `/metrics`: name, with its labels as they are written there, to value."""
        text = httpx.get(f"{self.address}/metrics", timeout=TIMEOUT).raise_for_status().text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def load(self, photos: Sequence[Path], point: Point, seconds: float) -> Round:
        """Put a load on the service for `seconds`, with the images `photos` in turn.

        Raises:
            PthserveError: The service does not answer the images with 200.
        """
        target = Target.parse(self.address)
        requests = [target.request(photo) for photo in photos]
        (found,) = measure_all(
            target, requests, [point], seconds=seconds, warm_up=WARM_UP, deadline=TIMEOUT, timeout=TIMEOUT
        )
        return found


@contextmanager
def serving(settings: Settings, cores: int) -> Iterator[Service]:
    """Run `pthserve serve` on `cores` cores until the block ends; the block runs on the others, if any.

    Only the options of the model are passed on: keys, limits and ports of the environment are for another
    service.

    Raises:
        PthserveError: There are too few cores, or the service does not get ready.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if cores > min(cpu_quota(), len(allowed)):
        raise PthserveError(
            f"{cores} cores cannot be measured on this machine, which has {cpu_quota()}; measure on one that "
            "has them, with --save-curve, and give the file as --curve"
        )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(VARIABLE.format(""))
    }
    for name in ModelOptions.model_fields:
        value = getattr(settings, name)
        if value != Settings.model_fields[name].default:
            environment[VARIABLE.format(name.upper())] = str(value)
    environment[VARIABLE.format("THREADS")] = str(cores)
    environment[VARIABLE.format("DRAIN_SECONDS")] = "0"
    environment[VARIABLE.format("DEADLINE")] = str(TIMEOUT)
    command = [sys.executable, "-m", "pthserve", "serve", settings.model, "--port", "0"]
    with tempfile.TemporaryDirectory(prefix="pthserve-size-") as folder:
        log = Path(folder, "log")
        began = time.monotonic()
        with log.open("wb") as written:
            os.sched_setaffinity(0, allowed[:cores])  # a child inherits that of the thread that starts it
            try:
                process = subprocess.Popen(  # noqa: S603
                    command, stdin=subprocess.DEVNULL, stdout=written, stderr=written, env=environment
                )
            finally:
                os.sched_setaffinity(0, allowed[cores:] or allowed)
        try:
            address, ready = _ready(process, log, began)
            yield Service(address, ready, settings.max_batch, shared=not allowed[cores:])
        finally:
            os.sched_setaffinity(0, allowed)
            _stop(process)


def _ready(process: "subprocess.Popen[bytes]", log: Path, began: float) -> tuple[str, float]:
    """Wait until the service is ready; its address, and the seconds that it took."""
    address = ""
    while time.monotonic() - began < START:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"]
            raise PthserveError(f"the service ended with exit code {process.returncode}: {lines[-1]}")
        if not address and (
            found := re.search(r"listening on (http://\S+)", log.read_text(errors="replace"))
        ):
            address = found[1]
        if address:
            with suppress(httpx.TransportError):
                if httpx.get(f"{address}/readyz", timeout=TIMEOUT).status_code == 200:
                    return address, time.monotonic() - began
        time.sleep(0.02)
    raise PthserveError(f"the service was not ready after {START:g} seconds")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
