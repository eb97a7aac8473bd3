"""Mapped files give their memory back, and nothing that is in them is lost."""

import mmap
import os
import time
from pathlib import Path

import pytest

from pthserve.engines.mapped_pages import release, releasing

from ..running import PATIENCE

SIZE = 1024 * mmap.PAGESIZE


def resident(file: Path) -> int:
    """Bytes of `file` that are in this process' memory."""
    kilobytes, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(" ")
        if not name.endswith(":"):
            ours = line.endswith(str(file))
        elif ours and name == "Rss:":
            kilobytes += int(value.split()[0])
    return 1024 * kilobytes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells")
def test_what_is_only_read_leaves_the_memory_and_is_there_when_it_is_read_again(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert bytes(mapped) == file.read_bytes()
        assert resident(file) == SIZE
        release(".other")
        assert resident(file) == SIZE
        release(".other", ".bin")
        assert resident(file) == 0
        assert bytes(mapped) == file.read_bytes()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells")
def test_a_file_without_a_name_counts_by_its_last_one(file: Path) -> None:
    data = file.read_bytes()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        file.unlink()
        assert bytes(mapped) == data
        gone = Path(f"{file} (deleted)")
        assert resident(gone) == SIZE
        release(".bin")
        assert resident(gone) == 0
        assert bytes(mapped) == data


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells")
def test_while_graphs_are_compiled_pages_leave_again_and_again(file: Path) -> None:
    data = file.read_bytes()
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        releasing(".bin"),
    ):
        for _ in range(2):
            assert bytes(mapped) == data
            end = time.monotonic() + PATIENCE
            while resident(file):
                assert time.monotonic() < end


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells")
def test_what_the_last_pass_has_read_leaves_at_the_end(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        with releasing(".bin"):
            assert bytes(mapped) == file.read_bytes()
        assert resident(file) == 0


def test_what_was_written_stays(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:5] = b"mine!"
        release(".bin")
        assert mapped[:5] == b"mine!"
