"""A detector and a segmentation model are measured beside a plain FastAPI service."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT


@pytest.mark.slow
def test_a_quick_run_prints_a_ratio_for_each_precision_and_leaves_nothing_behind(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "benchmarks.finders", "--quick", "--model", "lraspp_mobilenet_v3_large"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    _, _, *rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [["lraspp_mobilenet_v3_large", one] for one in ("fp32", "auto")]
    assert all(float(number) > 0 for row in rows for number in row[2:])
    assert list(scratch.iterdir()) == []
