"""Build process: the child that `loading.build` starts, which packs one model and tells how that goes.

It gives way to others, in CPU and in memory, and ends when the process that started it does. It tells lines
of JSON; see `_listen` in `loading.build`.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pthserve.errors import EngineError, PthserveError
from pthserve.options import ModelOptions

_FIRST_TO_GO = 1000
"""Of Linux' oom_score_adj: where memory runs out, the kernel ends this process and not the service."""
_OF_THE_KERNEL = ("/proc/", "/sys/", "/dev/")


def main() -> NoReturn:
    """Pack what the first line of the standard input asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the service, too, which ends this
    request = json.loads(_line(sys.stdin.fileno()))
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(request["nice"])
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_GO))
    sending = os.fdopen(int(sys.argv[1]), "w", encoding="ascii")

    def tell(kind: str, *values: Any) -> None:
        sending.write(json.dumps((kind, values)) + "\n")
        sending.flush()

    logging.getLogger().addHandler(_Telling(tell))
    logging.getLogger("pthserve").setLevel(request["level"])
    code = 0
    try:
        _build(request, tell)
    except PthserveError as error:
        choices = getattr(error, "choices", ())
        tell("error", type(error).__name__, str(error), choices)
    except BaseException as error:
        logging.getLogger(__name__).debug("%s", traceback.format_exc())
        tell("crash", f"{type(error).__name__}: {error}"[:2000])
        code = 1
    os._exit(code)  # what libraries leave running is not waited for


def _build(request: Mapping[str, Any], tell: Callable[..., None]) -> None:
    tell("stage", "reading the weights")
    from pthserve.loading import load, pack
    from pthserve.planning.candidates import device

    options = ModelOptions(**request["options"])
    folder = Path(request["folder"])

    def progress(done: int, total: int | None) -> None:
        tell("progress", done, total or 0)
        if total is not None and done >= total:
            tell("stage", "finding the architecture")

    with _watched(request["code"], Path(request["source"])) as opened:
        built = load.build(request["source"], options, progress)
    if device(options, built.architecture.module) != "cpu":
        tell("needs torch", "it runs on a GPU", [], False)
        return
    if built.unpackable:
        tell("needs torch", built.unpackable, *opened())
        return
    tell("stage", "converting the model")
    cpu = options.model_copy(update={"device": "cpu", "engine": "openvino"})
    try:
        pack.write(built, folder, cpu, check_golden=False)
    except EngineError as error:
        tell("needs torch", str(error), *opened())
        return
    except OSError as error:
        tell("unwritable", error.strerror or str(error))
        return
    tell("packed", *opened())


class _Telling(logging.Handler):
    """Tells the parent what is logged."""

    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell("log", record.name, record.levelno, record.getMessage())


@contextlib.contextmanager
def _watched(code: str, source: Path) -> Iterator[Callable[[], tuple[list[tuple[str, str]], bool]]]:
    """While user `code` runs, note the files that it reads, and the modules that it is made of.

    What is yielded gives them with their SHA-256, and whether none has changed since. Left out are the card
    of `source` and what it names, which are in the key; and files of Python and of installed packages, which
    count by their version.
    """
    from pthserve.files import card
    from pthserve.files.regular_files import sha256
    from pthserve.loading.cache_key import is_library

    names: dict[str, None] = {}
    counted: set[str] = set()
    watching = bool(code)
    began = time.time_ns()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not (watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike)):
            return
        name, mode, flags = arguments
        if not set(mode or "") & set("wax+") and not flags & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY):
            names[os.path.abspath(os.fsdecode(name))] = None  # noqa: PTH100

    def found() -> tuple[list[tuple[str, str]], bool]:
        modules = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        read, keep = {}, True
        for name in (*(names.keys() - counted), *filter(None, modules)) if code else ():
            file = Path(name).resolve()
            left_out = is_library(name) or is_library(str(file)) or str(file).startswith(_OF_THE_KERNEL)
            if left_out or file.suffix == ".pyc" or not file.is_file():
                continue
            try:
                keep &= file.stat().st_mtime_ns < began
                read[str(file)] = sha256(file)
            except OSError:
                keep = False
        return sorted(read.items()), keep

    if code:
        sys.addaudithook(hook)
        card.read(source)
        counted = set(names)
    try:
        yield found
    finally:
        watching = False


def _line(descriptor: int) -> bytes:
    """The first line. No file object is used: where a library forks, a copy of its lock would stay held."""
    whole = b""
    while not whole.endswith(b"\n") and (piece := os.read(descriptor, 2**16)):
        whole += piece
    return whole


def _end_with_the_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
