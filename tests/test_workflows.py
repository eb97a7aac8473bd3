"""What GitHub runs is what the Makefile has."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .sources.servers import program

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def targets(workflow: Any) -> list[str]:
    """The targets of the Makefile that the jobs run."""
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [step["with"]["target"] for step in steps if step.get("uses") == "./.github/actions/make"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_target_that_a_workflow_runs_is_the_makefile_s(path: Path) -> None:
    ran = targets(yaml.safe_load(path.read_text()))
    assert ran
    assert set(ran) <= TARGETS


def test_a_change_is_checked_and_tested_and_the_night_runs_every_test() -> None:
    ran = {path.stem: targets(yaml.safe_load(path.read_text())) for path in WORKFLOWS}
    # For a tag, both architectures make the release.
    assert ran == {"check": ["check", "test"], "nightly": ["test-all"], "release": ["release", "release"]}


@pytest.mark.slow
def test_github_understands_the_workflows() -> None:
    """actionlint knows their keys, expressions and shell commands; shellcheck is in the environment."""
    actionlint = program("actionlint")
    shellcheck = ROOT / ".venv/bin/shellcheck"
    done = subprocess.run(
        [actionlint, "-shellcheck", shellcheck, *WORKFLOWS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_release_s_workflow_passes_options_that_the_script_has() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    script = (ROOT / "scripts/release.py").read_text()
    options = {option for job in jobs.values() for option in re.findall(r"--[a-z-]+", job["env"]["RELEASE"])}
    assert options == {"--images", "--push", "--keyless", "--also"}
    assert all(f'"{option}"' in script for option in options)
