"""What tests share: the demo models, made once."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "weights"


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
