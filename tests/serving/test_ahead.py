"""A model is loaded while the service is still being imported; nobody can tell but by the clock."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pthserve.errors import WeightsError
from pthserve.loading.model import Model
from pthserve.serving.ahead import Ahead

from ..linear import SPEC, Linear, linear


class Loads:
    """A loader that counts, and waits at a gate."""

    def __init__(self, *errors: Exception | None) -> None:
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.models: list[Model] = []
        self.closed: list[str] = []
        self._errors = list(errors)

    def __call__(self) -> Model:
        self.begun.release()
        assert self.gate.wait(60)
        error = self._errors.pop(0) if self._errors else None
        if error is not None:
            raise error
        version = str(len(self.models))
        engine = Linear(SPEC, 5)
        engine.close = lambda: self.closed.append(version)  # type: ignore[method-assign]
        self.models.append(linear(engine, version=version))
        return self.models[-1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model.pth").write_bytes(b"weights")
    return tmp_path / "model.pth"


@pytest.fixture
def ahead(file: Path) -> Callable[[Loads], Ahead]:
    return lambda loads: Ahead(loads, str(file))


def test_the_load_begins_before_anybody_asks(ahead: Callable[[Loads], Ahead]) -> None:
    loads = Loads()
    load = ahead(loads)
    assert loads.begun.acquire(timeout=60)
    assert load().version == "0"
    assert len(loads.models) == 1


def test_each_later_call_loads_anew(ahead: Callable[[Loads], Ahead]) -> None:
    loads = Loads()
    load = ahead(loads)
    assert [load().version for _ in range(3)] == ["0", "1", "2"]
    assert not loads.closed


def test_files_that_changed_meanwhile_are_loaded_anew(ahead: Callable[[Loads], Ahead], file: Path) -> None:
    loads = Loads()
    load = ahead(loads)
    file.write_bytes(b"other weights")
    assert load().version == "1"
    assert loads.closed == ["0"]


def test_an_error_is_raised_by_the_call_that_it_belongs_to(ahead: Callable[[Loads], Ahead]) -> None:
    load = ahead(Loads(WeightsError("truncated")))
    with pytest.raises(WeightsError, match="truncated"):
        load()
    assert load().version == "0"


def test_an_error_of_files_that_changed_meanwhile_does_not_count(
    ahead: Callable[[Loads], Ahead], file: Path
) -> None:
    load = ahead(Loads(WeightsError("half copied")))
    file.write_bytes(b"whole weights")
    assert load().version == "0"


def test_what_is_logged_meanwhile_is_told_once_there_is_somebody_to_write_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of its own, so that it does not matter how other tests have set up the program's.
    root, logger = logging.getLogger(), logging.getLogger("a-library")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    logged = threading.Event()
    loads = Loads()

    def load() -> Model:
        logger.warning("the plan does not fit")
        logged.set()
        assert later.wait(60)
        logger.warning("nor does the hat")
        return loads()

    later = threading.Event()
    ahead = Ahead(load, str(file))
    assert logged.wait(60)

    class Written(logging.Handler):
        said: list[str] = []  # noqa: RUF012

        def emit(self, record: logging.LogRecord) -> None:
            self.said.append(record.getMessage())

    root.addHandler(Written())
    later.set()
    ahead()
    assert sorted(Written.said) == ["nor does the hat", "the plan does not fit"]
    assert [type(handler) for handler in root.handlers] == [Written]
