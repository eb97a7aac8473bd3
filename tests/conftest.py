"""What tests share: the demo models, made once, and real services."""

import fcntl
import gc
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .running import running

pytest_plugins = ["tests.http_service", "tests.modules"]
"""Fixtures that several folders share."""

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "weights"
LIBRARIES = 100_000
"""The objects of the imported libraries are more than these, and those that a test leaves are fewer."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests that can be made longer take."""
    parser.addoption("--fuzz", type=int, default=10_000, metavar="N", help="broken requests to send")
    parser.addoption("--fuzz-seed", type=int, metavar="N", help="of a run that is to be repeated")
    parser.addoption("--soak", type=float, default=180, metavar="S", help="seconds of load in one run")


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark long tests as slow, so that the fast loop leaves them out."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Leave what there is before a test out of the collections of garbage in it.

    Each service that starts collects, and the objects of all libraries together take it half a second. A
    service that stops has the collector look at everything again: then nothing is collected here, which
    would take as long. (`gc.get_freeze_count` would tell too, but counts one by one: 0.1 s a test.)
    """
    if len(gc.get_objects(generation=2)) < LIBRARIES:
        gc.collect()  # what earlier tests left since
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the last collection look at everything, so that nothing unclosed goes unreported."""
    gc.unfreeze()


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """pytest's own, with pthserve's warnings: services of other tests have levels of their own."""
    logger = logging.getLogger("pthserve")
    before = logger.level
    logger.setLevel(logging.WARNING)
    yield caplog
    logger.setLevel(before)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What runs the tests that are coroutines: the standard library's event loop."""
    return "asyncio"


def _made(folder: Path, weights: str, script: str) -> Path:
    """`folder`, after its script made the weights if they were not there; one process at a time."""
    with (folder / "making.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / weights).exists():
            subprocess.run([sys.executable, folder / script], check=True)
    return folder


@pytest.fixture(scope="session")
def imagenet() -> Path:
    """The folder of the ImageNet demo."""
    return _made(WEIGHTS / "imagenet", "efficientnet-lite0.pth", "make.py")


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder of the digits demo; the first time, its training takes about a minute."""
    return _made(WEIGHTS / "digits", "digits.pth", "train.py")


@pytest.fixture(scope="session")
def shapes() -> Path:
    """The folder of the shapes demo; the first time, its training takes some minutes."""
    return _made(WEIGHTS / "shapes", "shapes.pth", "train.py")


@pytest.fixture(scope="session")
def textures() -> Path:
    """The folder of the textures demo; the first time, its training takes some minutes."""
    return _made(WEIGHTS / "textures", "textures.pth", "train.py")


@contextmanager
def serving(model: str | Path, log: Path, *flags: str) -> Iterator[str]:
    """`pthserve serve MODEL FLAGS...` as a process of its own; its address, once it is ready."""
    with running(model, log, *flags) as service:
        yield service.address
        assert service.stop(30) == 0, log.read_text()


@pytest.fixture(scope="session")
def demo(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of `demo`."""
    with serving("demo", tmp_path_factory.mktemp("demo") / "log") as address:
        yield address


@pytest.fixture(scope="session")
def served_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of the digits demo."""
    with serving(digits, tmp_path_factory.mktemp("digits") / "log") as address:
        yield address
