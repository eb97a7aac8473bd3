"""What is measured: on which cores, with which photos."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pthserve.bench.load import Point, Round
from pthserve.errors import PthserveError
from pthserve.settings import Settings
from pthserve.sizing import measure
from pthserve.sizing.measure import MOST_PHOTOS, core_counts, photos_in
from pthserve.sizing.service import serving

from ..shared import until


@pytest.mark.parametrize(
    ("cpus", "counts"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (9, [1, 2, 4, 8, 9])]
)
def test_pods_of_1_2_4_and_all_cores_are_measured(
    cpus: int, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "cpu_quota", lambda: cpus)
    assert core_counts() == counts


def test_without_a_folder_the_photos_are_those_of_the_package() -> None:
    assert {"coffee.jpg", "rocket.jpg"} <= {photo.name for photo in photos_in(None)}


def test_photos_are_spread_over_the_folder_and_those_below_it(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    names = [f"{number:04}.JPG" for number in range(3 * MOST_PHOTOS)]
    for name in (*names, "notes.md"):
        (below / name).write_bytes(b"")
    assert [photo.name for photo in photos_in(tmp_path)] == names[::3]
    assert [photo.name for photo in photos_in(below)[:1]] == names[:1]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PthserveError, match="there is no image in this folder"):
        photos_in(tmp_path)


def test_the_pass_of_a_lone_image_has_its_share_of_the_median_latency() -> None:
    """One request of ten stalled: the mean latency is ten times the median, and so is the mean pass."""
    lone = Round(Point(1), 1.0, 1.0, [0.01] * 9 + [0.91])
    assert measure._image(lone, 0.06) == pytest.approx(0.6 * 0.01)
    assert measure._image(lone, 0.2) < 0.01


def test_few_latencies_of_a_single_client_are_mentioned() -> None:
    assert not measure._doubts([Round(Point(1), 1.0, 1.0, [0.01] * 100)], 1, shared=False)
    assert "99 requests only" in measure._doubts([Round(Point(1), 1.0, 1.0, [0.01] * 99)], 1, shared=False)[0]


def test_a_load_generator_that_shares_the_cores_of_the_service_is_mentioned() -> None:
    rounds = [
        Round(Point(clients), 1.0, 1.0, [0.01] * 100, cpu=cpu) for clients, cpu in ((1, 0.1), (8, 0.25))
    ]
    (text,) = measure._doubts(rounds, 2, shared=True)
    assert "shared the 2 cores and used up to 0.25 of them" in text


def test_other_work_of_the_machine_is_measured_and_mentioned() -> None:
    burning = "import time; end = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
    others = measure._Others()
    with subprocess.Popen([sys.executable, "-c", burning]) as process:
        try:
            used = until(lambda: (cpu := sum(psutil.Process(process.pid).cpu_times()[:2])) > 1 and cpu)
            everything = others.cores(0.0)
            assert everything > 0
            assert others.cores(used) < everything
        finally:
            process.kill()
    rounds = [Round(Point(1), 1.0, 1.0, [0.01] * 100)]
    assert not measure._doubts(rounds, 1, shared=False, others=measure.QUIET)
    (text,) = measure._doubts(rounds, 1, shared=False, others=0.4)
    assert "used 0.40 cores while 1 core of this machine" in text


def test_a_machine_whose_speed_changes_meanwhile_is_mentioned() -> None:
    rounds = [Round(Point(1), 1.0, 1.0, [0.01] * 100)]
    assert not measure._doubts(rounds, 1, shared=False, change=measure.STEADY)
    (text,) = measure._doubts(rounds, 1, shared=False, change=0.3)
    assert "changed by 30 % while 1 core" in text


def test_more_cores_than_there_are_cannot_be_measured() -> None:
    with (
        pytest.raises(PthserveError, match="100000 cores cannot be measured on this machine"),
        serving(Settings(), 100_000),
    ):
        pytest.fail("it was started")
