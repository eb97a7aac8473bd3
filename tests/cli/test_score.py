"""score: the command, its exit codes, what it prints, and how it divides the work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pthserve.cli import display
from pthserve.exits import IMAGES_FAILED

from ..scoring.material import environment, pack, photos, rows, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("pack") / "cats")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", 6)


def test_a_weights_file_is_packed_as_for_the_service_and_scores_real_images(
    digits: Path, tmp_path: Path
) -> None:
    done = run(tmp_path, digits, digits / "golden", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"10 images in {tmp_path}/out: 10 scored now" in done.stdout
    assert [row["label"] for row in rows(tmp_path / "out")] == list("0123456789")
    assert list((tmp_path / "cache").rglob("SHA256SUMS")), "the packed model is kept"


@pytest.mark.parametrize(("allowed", "code"), [(0, IMAGES_FAILED), (1, IMAGES_FAILED), (2, 0)])
def test_the_exit_code_says_whether_more_images_failed_than_may(
    allowed: int, code: int, model: Path, source: Path, tmp_path: Path
) -> None:
    for name in ("a.jpg", "b.jpg"):
        (source / name).write_text("no image")
    arguments = (model, source, "-o", tmp_path / "out", "--max-errors", str(allowed))
    for _ in range(2):  # the second has nothing to do, and says the same
        done = run(tmp_path, *arguments)
        assert done.returncode == code, done.stderr
        assert "2 errors" in done.stdout
    assert len(rows(tmp_path / "out")) == 8
    assert "8 images" in done.stdout
    assert "0 scored now" in done.stdout


def test_an_error_is_shown_and_other_files_are_counted(model: Path, source: Path, tmp_path: Path) -> None:
    (source / "a.jpg").write_text("no image")
    (source / "notes.md").write_text("#")
    done = run(tmp_path, model, source, "-o", tmp_path / "out")
    assert f"An error: {source}/a.jpg: " in done.stderr
    assert "1 other files in the sources are not images" in done.stderr


def test_a_pod_of_an_indexed_job_scores_its_share(model: Path, source: Path, tmp_path: Path) -> None:
    arguments = (model, source, "-o", tmp_path / "out")
    for index in range(4):
        done = run(tmp_path, *arguments, "--shards", "4", JOB_COMPLETION_INDEX=str(index))
        assert done.returncode == 0, done.stderr
        assert f"Shard {index} of 4 is complete" in done.stdout
        assert ("all shards are complete" in done.stdout) == (index == 3)
    assert len(rows(tmp_path / "out")) == 6
    done = run(tmp_path, *arguments, "--shard", "1/4", JOB_COMPLETION_INDEX="3")
    assert "Shard 1 of 4 is complete; all shards are complete" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "index", "message"),
    [
        ((), "3", "give their number, `completions`, as --shards"),
        (("--shards", "3"), "3", "needs JOB_COMPLETION_INDEX, from 0 to 2; it is 3"),
        (("--shards", "3"), "", "it is not set"),
        (("--shard", "3/3"), "", "must be I/N, with I from 0 to N - 1"),
        (("--shard", "one"), "", "must be I/N"),
        (("--shard", "0/3", "--shards", "3"), "", "exclude each other"),
        (("--shard", "0/3", "--restart"), "", "--restart would discard what other shards write"),
    ],
)
def test_a_share_that_cannot_be_is_wrong_usage(
    arguments: tuple[str, ...], index: str, message: str, tmp_path: Path
) -> None:
    done = run(tmp_path, "model", "photos", "-o", tmp_path / "out", *arguments, JOB_COMPLETION_INDEX=index)
    assert done.returncode == 2
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())


def test_what_cannot_be_is_told_in_one_line(model: Path, source: Path, tmp_path: Path) -> None:
    for arguments in (
        (model, tmp_path / "none", "-o", tmp_path / "out"),
        (model, source, "-o", "https://photos.example/out"),
        (model, source, "-o", tmp_path / "out", "--masks", "none"),
    ):
        done = run(tmp_path, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    done = run(tmp_path, tmp_path / "none.pth", source, "-o", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['pyarrow'] = None; from pthserve.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "score", "demo", "photos", "-o", "out"],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
    )
    assert done.returncode == 1
    assert "install pthserve[score], or use the full image" in done.stderr


def test_without_a_terminal_progress_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "EVERY", 0.0)
    clock = iter((100.0, 100.0, 100.0, 100.0, 102.0, 102.0, 102.0))
    monkeypatch.setattr("pthserve.cli.display.time.monotonic", lambda: next(clock))
    with display.counting("photos") as progress:
        progress(1000, 5000.0, 0)
        progress(2000, 5000.0, 3)
    assert capsys.readouterr().err.splitlines() == [
        "1,000 of 5,000 images (20 %), 0/s, 0 errors",
        "2,000 of 5,000 images (40 %), 500/s, 6 s left, 3 errors",
    ]
