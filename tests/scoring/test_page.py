"""docs/scoring.md: its commands and its Python run, and its table has the columns of every task."""

import re
import subprocess
from pathlib import Path

import pytest

from pthserve.scoring.columns import LEFT_OUT, OWN
from pthserve.scoring.listing import ARCHIVE_SUFFIXES
from pthserve.scoring.request import PART_ROWS
from pthserve.tasks.choice import TASKS

from ..sources.servers import s3
from ..test_docs import ROOT, commands
from .material import environment, pack, photos, rows, tar

PAGE = (ROOT / "docs" / "scoring.md").read_text()


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    pack(tmp_path / "cats.pth")
    images = photos(tmp_path / "photos", 3)
    (tmp_path / "list.csv").write_text("image\nphotos/0000.png\n")
    for number in range(2):
        tar(tmp_path / f"train-00{number}.tar", {"a.png": (images / f"000{number}.png").read_bytes()})
    photos(tmp_path / "s3" / "data" / "photos", 2)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shown = [*commands(PAGE), f"python -W error - <<'E'\n{code}\nE"]
    assert len(shown) >= 5
    with s3(tmp_path / "s3", tmp_path / "s3.log", "key", "secretkey") as endpoint:
        variables = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secretkey",
        }
        found = environment(tmp_path, **variables)
        found["PATH"] = f"{ROOT / '.venv' / 'bin'}:{found['PATH']}"
        for command in shown:
            done = subprocess.run(
                command, shell=True, cwd=tmp_path, env=found, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
    assert len(rows(tmp_path / "scores")) == 3
    assert len(rows(tmp_path / "from-a-list")) == 1
    assert len(rows(tmp_path / "from-archives")) == 2


@pytest.mark.parametrize("task", TASKS)
def test_the_table_has_the_columns_of_every_task(task: str) -> None:
    table = PAGE.partition("## Results")[2].partition("\n\nThe fields")[0]
    named = set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    )
    assert set(TASKS[task].answer_model.model_fields) - LEFT_OUT <= named
    assert set(OWN) <= named


def test_the_page_names_the_kinds_of_archives_and_the_rows_of_a_part() -> None:
    assert all(f"`{suffix}`" in PAGE or suffix in (".tar", ".tgz") for suffix in ARCHIVE_SUFFIXES)
    assert f"each part has {PART_ROWS:,} rows" in PAGE
