"""Temporary folders of runs are removed: by the run, or by the next one if it was killed."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pthserve.scoring import scratch

HOLDS = """
import sys
from pthserve.scoring import scratch
with scratch.folder() as folder:
    (folder / "archive.tar").write_bytes(b"0" * 1000)
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of these tests alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextmanager
def another_run() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that holds a folder, which was made an hour ago."""
    argv = [sys.executable, "-c", HOLDS]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        an_hour_ago = time.time() - 3600
        os.utime(folder, (an_hour_ago, an_hour_ago))
        try:
            yield process, folder
        finally:
            process.kill()


def test_a_folder_is_gone_after_its_run(temporary: Path) -> None:
    with scratch.folder() as folder:
        (folder / "download").write_bytes(b"0")
        assert folder.parent == temporary
    assert list(temporary.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(temporary: Path) -> None:
    with another_run() as (process, left):
        process.kill()
        process.wait()
        assert (left / "archive.tar").exists()
        with scratch.folder() as folder:
            assert list(temporary.iterdir()) == [folder]


def test_the_folder_of_a_run_that_goes_on_is_kept() -> None:
    with another_run() as (process, other), scratch.folder():
        assert process.poll() is None
        assert (other / "archive.tar").exists()


def test_folders_that_are_young_or_links_or_of_others_are_kept(temporary: Path) -> None:
    young, elsewhere = temporary / f"{scratch.PREFIX}young", temporary / "elsewhere"
    young.mkdir()
    elsewhere.mkdir()
    link = temporary / f"{scratch.PREFIX}link"
    link.symlink_to(elsewhere)
    os.utime(link, (0, 0), follow_symlinks=False)
    with scratch.folder():
        assert young.is_dir()
        assert link.is_symlink()
        assert elsewhere.is_dir()
