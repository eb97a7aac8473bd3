"""tune: what a machine can run a model with, as a table and as a file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pthserve.engines.openvino_engine import precisions
from pthserve.planning import plan_files
from pthserve.planning.plan import Plan

from ..conftest import ROOT, serving
from ..packs import tiny_pack
from ..zoo import CODE, tiny_folder

pytestmark = pytest.mark.slow


COMPARED = "Compared with fp32 PyTorch:"
"""What stands above the second table."""


def tune(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "pthserve", "tune", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200", "PTHSERVE_ALLOW_CODE": CODE},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


def rows(table: str) -> list[list[str]]:
    """Engine, precision, threads, batch, images a second, difference and note of each line of the table."""
    return [
        re.split(r"\s+", line.strip(), maxsplit=6)
        for line in table.partition(COMPARED)[0].splitlines()
        if re.match(r"\s*(openvino|torch)\s+(fp|bf|int)\d+\s+\d", line)
    ]


def test_the_table_has_what_was_tried_and_the_file_what_was_chosen(model: Path, tmp_path: Path) -> None:
    shown = tune(model, "-o", tmp_path / "plan.json", "--tune-budget", "5", "--threads", "1")
    plan = plan_files.read(tmp_path / "plan.json")
    tried = rows(shown)
    assert {("openvino", "fp32"), ("torch", "fp32")} <= {(row[0], row[1]) for row in tried}
    assert len(tried) == len(plan.trials)
    (chosen,) = [row for row in tried if row[-1] == "chosen"]
    assert chosen[:4] == [plan.engine, plan.precision, str(plan.threads), str(plan.max_batch)]
    assert float(chosen[4]) > 0
    assert float(chosen[5]) <= 0.02
    assert shown.rstrip().splitlines()[-1] == plan.reason
    assert plan.digest
    assert plan.cpu


def test_a_second_table_has_the_evidence(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "packed")
    shown = tune(tmp_path / "packed", "-o", tmp_path / "plan.json", "--tune-budget", "1", "--threads", "1")
    evidence = plan_files.read(tmp_path / "plan.json").evidence
    found = [line.split() for line in shown.partition(COMPARED)[2].splitlines() if "openvino" in line]
    table = [line for line in found if len(line) > 8][: len(evidence)]
    assert [line[:3] for line in table] == [[one.engine, one.precision, str(one.crops)] for one in evidence]
    for line, one in zip(table, evidence, strict=True):
        assert [float(figure) for figure in line[3:6]] == pytest.approx(
            [one.mean, one.p95, one.largest], abs=1e-4
        )


@pytest.mark.skipif("bf16" not in precisions(), reason="this CPU does not compute bf16")
def test_what_does_not_agree_is_in_the_table_with_the_reason(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "packed")
    tried = rows(tune(tmp_path / "packed", "--tune-budget", "1", "--tolerance", "0", "--threads", "1"))
    (refused,) = [row for row in tried if row[1] == "bf16"]
    assert refused[4:6] == ["-", "-"]
    assert "on 208 crops a difference is" in refused[6]
    assert [row[1] for row in tried if row[-1] == "chosen"] == ["fp32"]


def test_little_time_is_enough_for_one_measurement(model: Path, tmp_path: Path) -> None:
    tune(model, "-o", tmp_path / "plan.json", "--tune-budget", "0.001", "--threads", "1")
    plan = plan_files.read(tmp_path / "plan.json")
    assert plan.digest
    assert any(trial.rate for trial in plan.trials)


def test_a_service_takes_the_plan_and_tells_what_was_tried(tmp_path: Path) -> None:
    pack, file = tmp_path / "packed", tmp_path / "plan.json"
    tiny_pack(pack)
    tune(pack, "-o", file, "--precision", "fp32", "--tune-budget", "1", "--threads", "1")
    with serving(pack, tmp_path / "log", "--plan", str(file), "--threads", "1") as address:
        info = httpx.get(f"{address}/info").json()
        metrics = httpx.get(f"{address}/metrics").text
    plan = plan_files.read(file)
    assert Plan.from_dict(info["plan"]) == plan
    assert len(info["plan"]["trials"]) > 1
    assert plan.agreement is not None
    assert info["agreement"] == plan.agreement.to_dict()
    for statistic in ("mean", "p95", "largest"):
        (line,) = re.findall(
            rf'^pthserve_model_difference{{statistic="{statistic}"}} (.+)$', metrics, re.MULTILINE
        )
        assert float(line) == info["agreement"][statistic]
    assert 'pthserve_model_same_decisions_ratio{crops="all"} 1.0' in metrics
