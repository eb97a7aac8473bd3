"""Predictions of `pthserve size` are compared with measurements at five rates."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.size import crossing

from ..conftest import ROOT


def test_a_boundary_is_where_the_smoothed_percentiles_reach_the_limit() -> None:
    assert crossing([10, 20, 30], [0.01, 0.04, 0.16], 0.02) == pytest.approx(15)
    assert crossing([10, 20, 30, 40], [0.01, 0.045, 0.142, 0.64], 0.02) == pytest.approx(15, rel=0.1)
    assert math.isnan(crossing([10, 20, 30], [0.01, 0.02, 0.04], 0.05))
    assert math.isnan(crossing([10, 20, 30], [0.02, 0.04, 0.08], 0.01))


@pytest.mark.slow
def test_a_quick_run_prints_a_prediction_and_a_measurement_for_each_rate(
    digits: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks.size", str(digits), "--photos", str(digits / "golden")]
    done = subprocess.run(
        [
            *command,
            "--cores",
            "1",
            "--limit",
            "1000",
            "--seconds",
            "0.3",
            "--responses",
            "50",
            "--repeats",
            "2",
        ],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["cores"]) == ("digits", 1)
    assert all(len(row["each_ms"]) == len(row["speeds"]) == 2 for row in found["rates"])
    assert 5 <= len(found["rates"]) <= 9
    assert all(row[figure] > 0 for row in found["rates"] for figure in ("measured_ms", "same_arrivals_ratio"))
    assert all(row["steady_ratio"] > 0 for row in found["rates"] if row["rate"] < found["capacity"])
    assert 0 < found["boundary"] < found["capacity"]
    assert not list(tmp_path.glob("pthserve*")), "nothing of it is left behind"
