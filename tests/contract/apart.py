"""A client of other makers in a process of its own; in an environment of its own where it cannot share ours.

protobuf has room for one `inference` package in a process, and ours is in it already.

A script is a module of functions, each called with the service's address and whatever else, that gives back
plain values; it ends in `apart.answer(globals())`.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATIENCE = 180
"""Seconds that a function may take."""


class Apart:
    """The functions of a script, by name."""

    def __init__(self, connection: Connection, address: str) -> None:
        self._connection = connection
        self._address = address

    def __call__(self, function: str, *arguments: Any, **options: Any) -> Any:
        self._connection.send((function, (self._address, *arguments), options))
        assert self._connection.poll(PATIENCE), f"{function} did not end"
        value, error = self._connection.recv()
        assert error is None, error
        return value


@contextmanager
def running(python: str | Path, script: str, address: str) -> Iterator[Apart]:
    """The script of that name beside this file, run with `python`, for the service at `address`."""
    ours, theirs = Pipe()
    with theirs:
        command = [python, HERE / script, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    try:
        with ours:
            yield Apart(ours, address)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def answer(functions: dict[str, Any]) -> None:
    """In the other process: call what is asked for, until the connection is closed."""
    with Connection(int(sys.argv[1])) as connection:
        while True:
            try:
                function, arguments, options = connection.recv()
            except EOFError:
                return
            try:
                connection.send((functions[function](*arguments, **options), None))
            except Exception:
                connection.send((None, traceback.format_exc()))


def environment(lock: str) -> Path:
    """The Python of an environment that has what the lock file of that name has; it is made once, and kept.

    It lies outside the checkout: in $PTHSERVE_CACHE, or where the user's caches are.
    """
    pins = HERE / lock
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get("PTHSERVE_CACHE") or Path(caches) / "pthserve") / "clients"
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    folder = cache / f"{pins.stem}-{digest[:12]}"
    python, made = folder / "bin" / "python", folder / ".made"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        if not made.exists():
            uv = Path(sys.executable).with_name("uv")
            subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, folder], check=True)
            sync: list[str | Path] = [uv, "pip", "sync", "-q", "--python", python, "--require-hashes", pins]
            subprocess.run(sync, check=True)
            made.touch()
    return python
