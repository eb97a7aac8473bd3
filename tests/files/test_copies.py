"""A copy holds what was hashed, whatever becomes of the file; only regular files are read."""

import hashlib
import os
import socket
import tempfile
from pathlib import Path

import pytest

from pthserve.errors import PackError
from pthserve.files import copies

DATA = os.urandom(100_000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(DATA)
    return path


@pytest.fixture(params=["on disk", "in memory"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where copies lie: memory is for where no folder for temporary files can be written to."""
    if request.param == "in memory":
        monkeypatch.setattr(tempfile, "tempdir", "/proc/no-such-folder")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("change", ["truncated", "overwritten", "removed"])
def test_a_copy_stays_as_it_was_hashed(file: Path, change: str) -> None:
    digest, copy = copies.copy(file)
    if change == "truncated":
        os.truncate(file, 0)
    elif change == "overwritten":
        with file.open("r+b") as opened:
            opened.write(b"other")
    else:
        file.unlink()
    assert digest == hashlib.sha256(DATA).hexdigest()
    assert copy.path.read_bytes() == DATA


@pytest.mark.usefixtures("place")
def test_a_copy_has_no_name_that_another_process_could_open(file: Path) -> None:
    _, copy = copies.copy(file)
    assert str(copy.path.readlink()).endswith(".bin (deleted)")


def test_a_copy_s_descriptor_is_closed_with_it(file: Path) -> None:
    _, copy = copies.copy(file)
    path = copy.path
    assert path.exists()
    del copy
    assert not path.exists()


@pytest.mark.usefixtures("place")
def test_a_copy_of_nothing_is_empty(file: Path) -> None:
    os.truncate(file, 0)
    digest, copy = copies.copy(file)
    assert (digest, copy.path.read_bytes()) == (hashlib.sha256().hexdigest(), b"")


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    pipe, listener = tmp_path / "pipe", tmp_path / "socket"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(listener))
        for path in (pipe, listener, Path("/dev/zero")):
            with pytest.raises(PackError, match="is not a regular file"):
                copies.sha256(path)


def test_content_is_bounded_and_must_hash_to_what_is_known(file: Path) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    assert copies.content(file, digest, len(DATA)) == DATA
    with pytest.raises(PackError, match="is larger than 99999 bytes, which is the limit"):
        copies.content(file, digest, len(DATA) - 1)
    with pytest.raises(PackError, match="changed while it was being read"):
        copies.content(file, "0" * 64, len(DATA))
