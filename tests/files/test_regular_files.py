"""Files that others wrote: regular ones, of a bounded size, in their folder; anything else costs an error."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pthserve.files import regular_files

ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "nothing": (lambda path: None, "No such file"),
    "a loop": (lambda path: path.symlink_to(path), "symbolic links|name of a file"),
    "too large": (lambda path: path.write_bytes(b"x" * 11), "larger than the 10 bytes"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_small_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    make, reason = ODD[kind]
    make(tmp_path / "file")
    for use in (regular_files.read, regular_files.check):
        with pytest.raises(OSError, match=reason):
            use(tmp_path / "file", 10)


def test_a_file_that_says_it_is_empty_and_is_not_is_bounded_too() -> None:
    with pytest.raises(OSError, match="larger than the 3 bytes"):
        regular_files.read(Path("/proc/self/status"), 3)


def test_a_name_with_a_nul_is_refused_as_any_other(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be the name of a file"):
        regular_files.read(tmp_path / "a\0b", 10)


def test_links_are_followed_within_the_folder_and_not_out_of_it(tmp_path: Path) -> None:
    inside = tmp_path / "models" / "cats"
    (inside / "..2026").mkdir(parents=True)
    (inside / "..2026" / "labels.txt").write_text("tom")
    (inside / "..data").symlink_to("..2026")
    (inside / "labels.txt").symlink_to("..data/labels.txt")
    (tmp_path / "current").symlink_to(inside)  # the folder itself may be reached by a link
    for folder in (inside, tmp_path / "current"):
        assert regular_files.read(folder / "labels.txt", 10, folder) == b"tom"

    (tmp_path / "secret").write_text("secret")
    (inside / "link").symlink_to(tmp_path / "secret")
    for name in ("link", "../../secret", str(tmp_path / "secret")):
        with pytest.raises(OSError, match="lies outside of the folder"):
            regular_files.read(inside / name, 10, inside)
