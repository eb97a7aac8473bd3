"""Ahead: a load that has begun before anybody asks for its model."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from pthserve.errors import ModelError
from pthserve.files.fingerprint import fingerprint
from pthserve.loading.model import Model
from pthserve.serving.background import run


class Ahead:
    """`load`, of which the first call began, in a thread, when this was made; it is what a start waits for.

    source: what `load` reads. Where its files have changed since, the first call loads anew.
    """

    def __init__(self, load: Callable[[], Model], source: str) -> None:
        self._load = load
        self._source = Path(source)
        self._seen = fingerprint(self._source)
        self._begun: Future[Model] | None = Future()
        self._held = _Held()
        logging.getLogger().addHandler(self._held)
        threading.Thread(target=run, args=(load, self._begun), name="ahead", daemon=True).start()

    def __call__(self) -> Model:
        """The model; raises ModelError. One thread at a time calls it."""
        self._held.hand_over()
        begun, self._begun = self._begun, None
        if begun is None:
            return self._load()
        if fingerprint(self._source) == self._seen:
            return begun.result()
        with suppress(ModelError):
            begun.result().forward.close()
        return self._load()


class _Held(logging.Handler):
    """Keeps what is logged while there is nobody yet to write it."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers == [self]:
            self._records.append(record)

    def hand_over(self) -> None:
        """Give it to those who write by now."""
        logging.getLogger().removeHandler(self)
        while self._records:
            record = self._records.pop(0)
            logging.getLogger(record.name).handle(record)
