"""A packed model, to be read and to be spoilt."""

import shutil
from pathlib import Path

import pytest

from ..packs import tiny_pack


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model; to be read only."""
    folder = tmp_path_factory.mktemp("made") / "pack"
    tiny_pack(folder)
    return folder


@pytest.fixture
def pack(made: Path, tmp_path: Path) -> Path:
    """A packed model to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "pack"))
