"""A run needs as much memory for many images as for few, and bounds what images that are decoded need."""

import subprocess
from pathlib import Path
from statistics import median

import psutil
import pytest

from .material import command, environment, jpeg, pack, rows

pytestmark = pytest.mark.slow

IMAGES = 450
"""Several times as many as the pipeline holds at once."""
MARGIN = 24.0
"""MiB by which the median memory of two parts of a run may differ; 300 images that are kept take 10 GiB."""


def samples(model: Path, source: Path, folder: Path, *more: str) -> list[float]:
    """MiB that a run has, without pages of files, every 10 ms."""
    arguments: list[str | Path] = [model, source, "-o", folder, "--part-rows", "50", *more]
    found = []
    with psutil.Popen(
        command(*arguments), env=environment(folder.parent), stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            try:
                memory = process.memory_info()
            except psutil.NoSuchProcess:
                break
            found.append((memory.rss - memory.shared) / 2**20)
            try:
                process.wait(0.01)
            except psutil.TimeoutExpired:
                continue
    assert process.returncode == 0
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return pack(tmp_path / "cats")


def large(folder: Path, count: int) -> Path:
    """Links to one photo of 12 million pixels, which needs 36 MB when it is decoded."""
    folder.mkdir()
    (folder / "0000.jpg").write_bytes(jpeg(4000, 3000))
    for number in range(1, count):
        (folder / f"{number:04}.jpg").symlink_to("0000.jpg")
    return folder


def test_memory_does_not_grow_with_the_number_of_images(model: Path, tmp_path: Path) -> None:
    """Medians are compared: the highest sample depends on how many images happen to be decoded together."""
    found = samples(model, large(tmp_path / "photos", IMAGES), tmp_path / "out")
    third = len(found) // 3
    middle, last = median(found[third : 2 * third]), median(found[2 * third :])
    print(f"{len(found)} samples; {middle:.0f} MiB in the second third of the run, {last:.0f} in the last")
    assert last < middle + MARGIN
    assert len(rows(tmp_path / "out")) == IMAGES


def test_large_images_wait_for_the_memory_that_they_may_have(model: Path, tmp_path: Path) -> None:
    """With memory for one of them, the run needs less than with memory for two, and loses none."""
    source = large(tmp_path / "photos", 20)
    needed = 12_000_000 * 3 // 2**20
    one = max(samples(model, source, tmp_path / "one", "--decode-memory", str(120 * 2**20), "--threads", "4"))
    all_at_once = max(
        samples(model, source, tmp_path / "all", "--decode-memory", str(2**30), "--threads", "4")
    )
    print(f"{one:.0f} MiB with a bound, {all_at_once:.0f} MiB without; an image needs {needed} MiB")
    assert one < all_at_once
    assert len(rows(tmp_path / "one")) == 20
