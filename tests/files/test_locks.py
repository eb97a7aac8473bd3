"""Locks of files: one holder, or several that only read, and none that was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from pthserve.files.locks import Lock

HOLDER = """
import sys
from pathlib import Path
from pthserve.files.locks import Lock

with Lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def is_free(file: Path, *, shared: bool = False) -> bool:
    try:
        Lock(file, shared=shared, wait=False).release()
    except BlockingIOError:
        return False
    return True


def test_one_holds_it_or_several_that_share_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with Lock(file) as lock:
        assert not is_free(file, shared=True)
        lock.share()
        assert is_free(file, shared=True)
        assert not is_free(file)
    assert is_free(file)


def test_a_process_that_is_killed_holds_it_no_longer(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        assert not is_free(file)
        holder.kill()
        Lock(file).release()  # waits until the process has ended


def test_a_file_that_was_removed_or_replaced_is_not_in_place(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with Lock(file) as lock:
        assert lock.is_in_place()
        file.unlink()
        assert not lock.is_in_place()
        with Lock(file) as other:
            assert other.is_in_place()
            assert not lock.is_in_place()


def test_a_file_is_created_for_its_user_unless_it_is_to_be_shared(tmp_path: Path) -> None:
    Lock(tmp_path / "own").release()
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o600
    Lock(tmp_path / "common", mode=0o666).release()
    assert (tmp_path / "common").stat().st_mode & 0o400


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Lock(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()
