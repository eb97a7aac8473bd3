"""Process: a service and its children, held still while others are measured."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PATIENCE = 600.0
"""Seconds that a start may take, on a machine that has other things to do."""

SETTLING = 3.0
"""Seconds that a service may take for what is left of its work when nobody asks any more."""
RESTING = 0.15
"""Cores that a service may take while it only waits; the clock that tells is in hundredths of a second."""


class Process:
    """A process group of its own, whose output goes to `log`.

    After `sleep` it runs only while `awake`: a service that polls its queues must not take CPU from another.
    """

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self._log = log
        self._began = time.perf_counter()
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def ready(self, url: str) -> float:
        """Seconds from the start until `url` answers 200; raises RuntimeError where the process ends."""
        while self._child.poll() is None and time.perf_counter() - self._began < PATIENCE:
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
                urllib.request.urlopen(url, timeout=5) as answer,
            ):
                if answer.status == 200:
                    return time.perf_counter() - self._began
            time.sleep(0.02)
        raise RuntimeError(f"{self.name} does not serve:\n{self.said()}")

    def sleep(self) -> None:
        """Hold it still."""
        os.killpg(self._child.pid, signal.SIGSTOP)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run within the block, and until it has done what it was asked for in there.

        Held still in the middle of a forward pass, it would take its answers for minutes late.
        """
        os.killpg(self._child.pid, signal.SIGCONT)
        try:
            yield
            end = time.monotonic() + SETTLING
            while time.monotonic() < end and self._cores(0.1) > RESTING:
                pass
        finally:
            self.sleep()

    def cpu(self) -> float:
        """Seconds of CPU that it has taken."""
        return sum(sum(one.cpu_times()[:2]) for one in self._tree())

    def _cores(self, seconds: float) -> float:
        before = self.cpu()
        time.sleep(seconds)
        return (self.cpu() - before) / seconds

    def memory(self) -> float:
        """Proportional set size in MiB: pages that others map too count in part."""
        return sum(float(one.memory_full_info().pss) for one in self._tree()) / 2**20

    def said(self) -> str:
        """The end of its output."""
        return self._log.read_text(errors="replace")[-4000:]

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self._child.pid)
        return [root, *root.children(recursive=True)]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for the block, in which services and PyTorch leave what they leave behind."""
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="pthserve-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before
            if variable is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = variable


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
