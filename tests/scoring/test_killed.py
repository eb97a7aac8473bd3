"""Runs that end at random, in three ways: there is exactly one row for each image, and the right one.

PTHSERVE_KILLS is how often each of them ends; the default keeps the test short.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..linear import noise, png
from ..sources.servers import s3
from .material import command, environment, loaded, pack, photos, rows, run, tar

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("PTHSERVE_KILLS", "3"))
IMAGES, PART = 600, 7
MORE = 400
"""Images that there are for each early end, so that the last of them comes before all are scored."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("pack") / "cats")


@contextlib.contextmanager
def place(kind: str, folder: Path, images: int = IMAGES) -> Iterator[tuple[str, str, Path, dict[str, str]]]:
    """Source and output of this kind; the folder with the results; and the environment."""
    if kind == "tars":
        for first in range(0, images, 200):
            files = {f"{n:04}.png": png(noise(n, 24, 32)) for n in range(first, first + 200)}
            tar(folder / "tars" / f"{first:04}.tar.gz", files, "w:gz")
        yield str(folder / "tars"), str(folder / "out"), folder / "out", {}
        return
    bucket = folder / "s3" / "data"
    photos(bucket / "photos", images)
    if kind == "folder":
        yield str(bucket / "photos"), str(folder / "out"), folder / "out", {}
        return
    with s3(bucket.parent, folder / "s3.log", "key", "secretkey") as endpoint:
        variables = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secretkey",
        }
        yield "s3://data/photos", "s3://data/out", bucket / "out", variables


def parts(folder: Path) -> int:
    return len(list(folder.glob("part-*.parquet")))


FATES = ("killed", "deleted", "lost")
"""As by `kill -9`; as a pod that is deleted; as on a node that is lost, and returns at the end."""


def interrupted(
    fate: str, model: Path, folder: Path, source: str, output: str, results: Path, more: dict[str, str]
) -> "subprocess.Popen[bytes]":
    """Begin, and let it have this fate at random after the next part is there."""
    there = parts(results)
    arguments = (model, source, "-o", output, "--part-rows", str(PART))
    process = subprocess.Popen(command(*arguments), env=environment(folder, **more))
    while process.poll() is None and parts(results) <= there:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.15))
    process.send_signal({"killed": signal.SIGKILL, "deleted": signal.SIGTERM, "lost": signal.SIGSTOP}[fate])
    if fate != "lost":
        process.wait(60)
    return process


def every_image_has_one_right_row(model: Path, results: Path, images: int = IMAGES) -> None:
    found = rows(results)
    by_name = {Path(row["key"]).stem: row for row in found}
    assert len(found) == len(by_name) == images
    with loaded(model) as answering:
        for number in random.sample(range(images), 30):
            answer = answering(png(noise(number, 24, 32)))
            row = by_name[f"{number:04}"]
            assert row["class_index"] == answer.class_index
            assert row["probabilities"] == pytest.approx(answer.probabilities.tolist(), abs=1e-5)


def check(kind: str, times: int, model: Path, folder: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random.seed(seed)
    fates = random.sample(FATES * times, times)
    lost: list[subprocess.Popen[bytes]] = []
    at: list[int] = []
    images = MORE * times
    with place(kind, folder, images) as (source, output, results, more):
        try:
            for fate in fates:
                process = interrupted(fate, model, folder, source, output, results, more)
                at.append(parts(results))
                if fate == "lost":
                    lost.append(process)
            assert at == sorted(at), "what had been written was lost"
            assert at[-1] < images // PART, "all were scored before the last early end"
            done = run(folder, model, source, "-o", output, "--part-rows", str(PART), **more)
            assert done.returncode == 0, done.stderr
            assert f"{images:,} images" in done.stdout
            every_image_has_one_right_row(model, results, images)
            for process in lost:  # they go on with what they have, at the same time
                process.send_signal(signal.SIGCONT)
            for process in lost:
                process.wait(120)
        finally:
            for process in lost:
                process.kill()
                process.wait()
        assert not list(results.glob(".*")), "what the interrupted ones left is still there"
        every_image_has_one_right_row(model, results, images)
        print(f"parts, and how it ended then: {list(zip(at, fates, strict=True))}")


@pytest.mark.parametrize("kind", ["folder", "tars", "s3"])
def test_a_run_that_ends_early_goes_on_without_a_lost_or_doubled_row(
    kind: str, model: Path, tmp_path: Path
) -> None:
    check(kind, KILLS, model, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["folder", "tars", "s3"])
def test_a_run_that_ends_early_twenty_times_goes_on(kind: str, model: Path, tmp_path: Path) -> None:
    check(kind, 20, model, tmp_path)


def test_two_processes_that_score_the_same_shard_write_the_same_rows(model: Path, tmp_path: Path) -> None:
    """As when a node that was lost comes back."""
    with place("folder", tmp_path) as (source, output, results, _):
        arguments = (model, source, "-o", output, "--part-rows", str(PART))
        both = [
            subprocess.Popen(command(*arguments), env=environment(tmp_path), stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        ends = [process.communicate()[1] for process in both]
        # The one that ends first removes what is still being written: it is there already.
        assert 0 in [process.returncode for process in both], ends
        every_image_has_one_right_row(model, results)


def test_a_run_that_is_told_to_stop_ends_at_once_and_goes_on_later(model: Path, tmp_path: Path) -> None:
    with place("folder", tmp_path) as (source, output, results, _):
        arguments = (model, source, "-o", output, "--part-rows", str(PART))
        with subprocess.Popen(
            command(*arguments), env=environment(tmp_path), stderr=subprocess.PIPE, text=True
        ) as process:
            while parts(results) < 2:
                assert process.poll() is None
                time.sleep(0.001)
            process.terminate()
            _, told = process.communicate(timeout=30)
        assert process.returncode == 128 + signal.SIGTERM
        assert "run the same command again to continue" in told
        assert run(tmp_path, *arguments).returncode == 0
        every_image_has_one_right_row(model, results)
