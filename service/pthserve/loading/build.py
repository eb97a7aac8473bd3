"""Build: a model packed by a child process, so that this one needs neither PyTorch nor its memory.

The child, `build_process`, tells what it does in lines of JSON: the stage that it is at, how much it has
read, what it logs, and at last how it ended.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pthserve import errors
from pthserve.errors import AmbiguousArchitecture, EngineError, ModelError, PthserveError
from pthserve.options import ModelOptions

SECONDS = 3600.0
"""Maximum time for a build."""
_log = logging.getLogger(__name__)

Watch = Callable[[str, int, int], None]
"""Called with the stage, in words, and the bytes read so far and in all (0 where nothing is read)."""


class BuildFailed(Exception):
    """The child could not build for a reason that lies in the child; the text says which."""


@dataclass(slots=True)
class Result:
    """What came of a build.

    read: files that the build read beside those of the model, with their SHA-256. keep: whether the same
    build would come to the same another time. warnings: logger, level and message. needs_torch: why the model
    must run in PyTorch, or "".
    """

    read: list[tuple[str, str]] = field(default_factory=list)
    keep: bool = True
    warnings: list[tuple[str, int, str]] = field(default_factory=list)
    needs_torch: str = ""


def build(
    source: str, options: ModelOptions, folder: Path, watch: Watch, *, code: str = "", nice: int = 0
) -> Result:
    """Have a child pack the model that `source` names into `folder`, which is there and empty.

    code: the user's code that builds it, if there is any; what it reads is then looked at.
    nice: by how much the child gives way to others, as of nice(1).
    Raises:
        ModelError: as in this process. OSError: `folder` cannot be written to, or is full. BuildFailed.
    """
    request = {
        "source": source,
        "options": options.model_dump(mode="json", include=set(ModelOptions.model_fields)),
        "folder": str(folder),
        "code": code,
        "nice": nice,
        "level": logging.getLogger("pthserve").getEffectiveLevel(),
    }
    receiving, sending = os.pipe()
    # -P: the current folder is not looked into for modules unless it is in the path anyhow.
    command = [sys.executable or "python3", "-P", "-m", "pthserve.loading.build_process", str(sending)]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
    environment = {**os.environ, "PYTHONPATH": path}
    environment.setdefault("OMP_NUM_THREADS", str(options.cpus))
    with os.fdopen(receiving, "rb") as told:
        try:
            child = subprocess.Popen(  # noqa: S603, this Python and a module of ours
                command, stdin=subprocess.PIPE, pass_fds=[sending], env=environment
            )
        except OSError as error:
            raise BuildFailed(f"no process can be started: {error.strerror}") from error
        finally:
            os.close(sending)
        late = threading.Timer(SECONDS, child.kill)
        late.daemon = True
        late.start()
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(request).encode() + b"\n")
                child.stdin.flush()  # and left open: the child ends when it is closed
                found = _listen(told, watch)
            if found is None:
                raise _ended(child.wait(), late=late.finished.is_set())
            return found
        finally:
            late.cancel()
            child.kill()
            child.wait()


def _listen(told: IO[bytes], watch: Watch) -> Result | None:
    """What the child comes to, or None where it ends without a word; raises what `build` does."""
    warnings: list[tuple[str, int, str]] = []
    stage = ""
    for line in told:
        if not line.endswith(b"\n"):
            break
        kind, values = json.loads(line)
        if kind == "stage":
            (stage,) = values
            watch(stage, 0, 0)
        elif kind == "progress":
            watch(stage, *values)
        elif kind == "log":
            name, level, message = values
            if level >= logging.WARNING and name.startswith("pthserve"):
                warnings.append((name, level, message))
            log_again(name, level, message)
        else:
            return _outcome(kind, values, warnings)
    return None


def _outcome(kind: str, values: list[Any], warnings: list[tuple[str, int, str]]) -> Result:
    """What the last line of the child says."""
    match kind, values:
        case "packed", [read, keep]:
            return Result([(file, digest) for file, digest in read], keep, warnings)
        case "needs torch", [reason, read, keep]:
            return Result([(file, digest) for file, digest in read], keep, warnings, reason)
        case "error", [name, message, choices]:
            raise _error(name, message, choices)
        case "unwritable", [reason]:
            raise OSError(0, reason)
    raise BuildFailed(f"{kind}: {values}")


def log_again(name: str, level: int, message: str) -> None:
    """Log what was logged elsewhere."""
    logger = logging.getLogger(name)
    if logger.isEnabledFor(level):
        logger.handle(logger.makeRecord(name, level, "", 0, message, (), None))


def _error(kind: str, message: str, choices: list[list[str]]) -> PthserveError:
    if kind == AmbiguousArchitecture.__name__:
        return AmbiguousArchitecture(message, choices)
    made: type[PthserveError] = getattr(errors, kind)
    return made(message)


def _ended(code: int, *, late: bool) -> ModelError | BuildFailed:
    if late:
        return EngineError(f"building the model took more than {SECONDS:.0f} s")
    if code >= 0:
        return BuildFailed(f"it ended with {code}")
    name = signal.Signals(-code).name
    memory = ", as the kernel does where memory runs out; give it more" if name == "SIGKILL" else ""
    return EngineError(f"the process that builds the model was ended by {name}{memory}")
