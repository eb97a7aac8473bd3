"""docs/sizing.md: its commands run, and its table has the defaults of the code."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from pthserve.sizing import plan

from ..conftest import serving
from ..running import CACHE
from ..scoring.material import pack, photos
from ..test_docs import ROOT, commands

PAGE = (ROOT / "docs" / "sizing.md").read_text()


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    """Measurements are shorter, and limits higher, than on the page: this machine may have other work."""
    pack(tmp_path / "cats.pth")
    images = photos(tmp_path / "photos", 2)
    (images / "0000.png").rename(images / "cat.jpg")
    environment = {**os.environ, "PTHSERVE_TUNE_BUDGET": "0", "XDG_CACHE_HOME": str(CACHE)}
    environment["PATH"] = f"{ROOT / '.venv' / 'bin'}:{environment['PATH']}"
    with serving(tmp_path / "cats.pth", tmp_path / "log") as address:
        for command in (shown := commands(PAGE)):
            changed = (
                command.replace("http://127.0.0.1:8000", address).replace("50ms", "9s").replace("80ms", "9s")
            )
            seconds = "--seconds 1 --warm-up 0" if "bench" in command.split()[1] else "--seconds 1"
            words = [*shlex.split(seconds), *shlex.split(changed.partition(" > ")[0])[2:]]
            done = subprocess.run(
                ["pthserve", command.split()[1], *words],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
            if output := command.partition(" > ")[2]:
                (tmp_path / output).write_text(done.stdout)
    assert len(shown) == 5
    assert (tmp_path / "cats.yaml").exists()


def test_the_page_has_the_constants_of_the_plan() -> None:
    assert f"Time: {plan.REACTION:g} s until it wants a pod, {plan.SCHEDULING:g} s until the process" in PAGE
    assert plan.TOLERANCE == 0.1
    assert "a tenth less for the tolerance of the autoscaler" in PAGE
