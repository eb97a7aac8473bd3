"""What GitHub runs is what the Makefile has."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def targets(workflow: Any) -> list[str]:
    """The targets of the Makefile that the jobs run."""
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [step["with"]["target"] for step in steps if step["uses"] == "./.github/actions/make"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_target_that_a_workflow_runs_is_the_makefile_s(path: Path) -> None:
    ran = targets(yaml.safe_load(path.read_text()))
    assert ran
    assert set(ran) <= TARGETS


def test_a_change_is_checked_and_tested_and_the_night_runs_every_test() -> None:
    ran = {path.stem: targets(yaml.safe_load(path.read_text())) for path in WORKFLOWS}
    assert ran == {"check": ["check", "test"], "nightly": ["test-all"]}
