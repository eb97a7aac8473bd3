"""The scripts that train the demos."""

import importlib.util
from types import ModuleType

import pytest

from ..conftest import WEIGHTS


@pytest.fixture(scope="module")
def train(request: pytest.FixtureRequest) -> ModuleType:
    """The script `train.py` of the demo that the test's module is named for."""
    demo = request.module.__name__.rpartition("test_")[2]
    spec = importlib.util.spec_from_file_location(f"{demo}_train", WEIGHTS / demo / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
