"""`pthserve serve` as a process of its own, and what can be seen of it from outside."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from .shared import metric

PATIENCE = 180.0
"""Seconds after which a condition that does not come is a failure."""
CACHE = Path(tempfile.gettempdir()) / f"pthserve-tests-{os.getuid()}"
"""In place of the user's cache folder: later services of the same model find it packed, in other runs too."""


class Running:
    """A service of `model`, with the settings `flags`; its log is the file `log`.

    modules: folder of what the model's card names, which is allowed to run.
    """

    def __init__(self, model: str | Path, log: Path, *flags: str, modules: Path | None = None) -> None:
        self.log = log
        command = (sys.executable, "-m", "pthserve", "serve", str(model), "--port", "0", *flags)
        settings = {"PTHSERVE_TUNE_BUDGET": "0", "PTHSERVE_DRAIN_SECONDS": "0"}
        settings["XDG_CACHE_HOME"] = str(CACHE)
        if modules:
            paths = filter(None, (str(modules), os.environ.get("PYTHONPATH")))
            settings["PYTHONPATH"] = os.pathsep.join(paths)
            settings["PTHSERVE_ALLOW_CODE"] = ",".join(file.stem for file in modules.glob("*.py"))
        with log.open("wb") as written:
            self.process = subprocess.Popen(command, stderr=written, env={**os.environ, **settings})

    def until_listening(self) -> None:
        """Wait until it answers at all."""
        self.address = self._wait(r"listening on (http://\S+)")
        self.port = int(self.address.rpartition(":")[2])
        self.client = httpx.Client(base_url=self.address, timeout=PATIENCE)

    def until_ready(self) -> None:
        """Wait until it answers that it is ready."""
        self.until_listening()
        end = time.monotonic() + PATIENCE
        while self.client.get("/readyz").status_code != 200:
            self._alive(end)

    @property
    def grpc_port(self) -> int:
        """Where it serves gRPC, if the flags ask for it."""
        return int(self._wait(r"listening for gRPC on \S+:(\d+)"))

    def metric(self, name: str) -> float:
        """The value of the sample called `name`, with its labels; 0 where there is none."""
        return metric(self.client, name)

    def memory(self) -> float:
        """MiB resident that are not pages of files.

        Those are the kernel's to take and to give, and whether they are the process' own depends on who
        else maps the same libraries, the tests among them.
        """
        found = psutil.Process(self.process.pid).memory_info()
        return float(found.rss - found.shared) / 2**20

    def stop(self, seconds: float = PATIENCE) -> int:
        """Ask it to end within so many seconds; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def _wait(self, pattern: str) -> str:
        end = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.log.read_text())):
            self._alive(end)
        return found[1]

    def _alive(self, end: float) -> None:
        assert self.process.poll() is None, self.log.read_text()
        assert time.monotonic() < end, self.log.read_text()
        time.sleep(0.05)


@contextmanager
def running(
    model: str | Path,
    log: Path,
    *flags: str,
    modules: Path | None = None,
    until: Callable[[Running], None] = Running.until_ready,
) -> Iterator[Running]:
    """A service that `until` has waited for; it ends with 0, unless the test fails or has ended it."""
    service = Running(model, log, *flags, modules=modules)
    try:
        until(service)
        yield service
        service.client.close()
        if service.process.poll() is None:
            assert service.stop() == 0, log.read_text()
    finally:
        service.process.kill()
        service.process.wait()
