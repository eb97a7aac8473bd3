"""benchmarks.score measures a run and its limit; what it says is not for a test that shares the machine."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from ..scoring.material import environment, pack

pytestmark = pytest.mark.slow


def test_it_says_how_far_a_run_is_from_the_limit(tmp_path: Path) -> None:
    model = pack(tmp_path / "cats")
    arguments = (str(model), "--images", "30", "--size", "64x48", "--rounds", "1", "--tune-budget", "0")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.score", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["images"] == 30
    (score,), limits = found["scores"], found["limits"]
    assert found["ratio"] == pytest.approx(score / statistics.mean(limits), rel=0.01)
    assert found["memory_mib"]["most"] > 0
