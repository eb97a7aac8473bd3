"""The service that is sent what is broken."""

import random
from collections.abc import Iterator

import pytest

from ..load.models import MODULES, make
from ..running import Running, running
from .mutations import MODEL

FLAGS = ("--engine", "torch", "--max-pixels", "4000000", "--max-body", "8388608", "--grpc-port", "0")


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("fuzz")
    with running(make(folder / MODEL), folder / "log", *FLAGS, modules=MODULES) as started:
        yield started


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """Of the run; printed, so that it can be repeated."""
    given = pytestconfig.getoption("fuzz_seed")
    chosen = random.randrange(2**32) if given is None else int(given)
    print(f"--fuzz-seed {chosen}")
    return chosen
