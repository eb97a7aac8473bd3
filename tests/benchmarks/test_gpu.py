"""PyTorch's engine is measured on a GPU beside services that run the same model there."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from ..conftest import ROOT

COMMAND = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--model", "resnet18", "--precision", "fp32"]


@pytest.mark.slow
def test_a_quick_run_prints_ratios_and_leaves_nothing_behind(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # A short path: LitServe puts a socket there.
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [*COMMAND, "--device", device, "--json", str(numbers)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": scratch, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        assert list(Path(scratch).iterdir()) == []
    rows = [
        line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| resnet18")
    ]
    assert [row[1] for row in rows] == ["fp32", "FastAPI + torch", "LitServe"]
    (found,) = json.loads(numbers.read_text())
    rates = found["rates"]["fp32"]
    assert sorted(rates) == ["1", "64", "8"]
    assert all(rate > 0 for repeats in rates.values() for rate in repeats)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "no CUDA device found" in done.stderr
