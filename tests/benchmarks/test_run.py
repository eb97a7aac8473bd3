"""A run measures everything once, says it as a table, and leaves nothing behind."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short name: LitServe puts sockets into it, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.long
def test_a_quick_run_yields_the_table_and_writes_nothing_but_what_is_asked(
    tmp_path: Path, scratch: Path
) -> None:
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks"]
    measured = subprocess.run(
        [*command, "--quick", "--json", found],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert measured.returncode == 0, measured.stderr
    assert list(scratch.iterdir()) == []
    assert list(tmp_path.iterdir()) == [found]

    values = json.loads(found.read_text())
    samples = {(sample["who"], sample["what"]): sample["value"] for sample in values["repeats"][0]}
    assert min(samples.values()) > 0
    for who in ("FastAPI + torch", "LitServe, ImageNet demo", "auto exact", "digits auto", "ResNet-50 fp32"):
        assert samples[who, "8 clients"] > 0
    for name in ("fp32", "ImageNet demo auto"):
        assert samples["benchmark_app", name] > 0
    for row in (
        "throughput, ImageNet demo, `auto` / best peer",
        "served / limit, `auto`, `exact`",
        "cores while idle",
    ):
        assert f"| {row}" in measured.stdout

    page = tmp_path / "performance.md"
    page.write_text((ROOT / "docs" / "performance.md").read_text())
    subprocess.run(
        [*command, "--from", found, "--page", page], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    written = page.read_text()
    for table in measured.stdout.strip().split("\n\n"):
        assert table in written
