"""archives: the images in a tar, in its order; and damage is never taken for the end."""

import random
from pathlib import Path

import pytest

from pthserve.errors import PthserveError, TooLarge
from pthserve.scoring.archives import Archive
from pthserve.scoring.listing import Entry

from .material import tar

FILES = {
    "0001.jpg": b"first",
    "0001.cls": b"7",
    "0001.json": b"{}",
    "./deep/0002.png": b"second" * 1000,
    "._0001.jpg": b"of macOS",
    "0000.webp": b"third",
}
IMAGES = {"0001.jpg": b"first", "./deep/0002.png": b"second" * 1000, "0000.webp": b"third"}


def archive(path: Path, most: int = 2**20) -> Archive:
    return Archive(Entry("cats.tar", str(path)), most)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_the_images_of_an_archive_have_their_order_and_content(mode: str, tmp_path: Path) -> None:
    found = archive(tar(tmp_path / "cats.tar", FILES, mode))
    assert {found.key(n): found.read(n, 10_000) for n in range(len(found))} == {
        f"cats.tar/{name}": content for name, content in IMAGES.items()
    }
    assert [found.key(n) for n in range(len(found))] == [f"cats.tar/{name}" for name in IMAGES]
    found.close()


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    found = archive(tar(tmp_path / "cats.tar", FILES))
    with pytest.raises(TooLarge, match="larger than 100 bytes"):
        found.read(1, 100)
    found.close()


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "cats.tar.gz", {"a.jpg": bytes(2**22)}, "w:gz")
    assert path.stat().st_size < 2**16
    with pytest.raises(PthserveError, match="has more than 1048576 bytes when unpacked"):
        archive(path)


def test_wherever_an_archive_is_cut_or_overwritten_no_image_is_lost_in_silence(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random.seed(seed)
    whole = tar(tmp_path / "whole.tar", {f"{n}.jpg": random.randbytes(700) for n in range(20)}).read_bytes()
    end = 20 * (512 + 1024)
    for _ in range(200):
        at = random.randrange(1, end)
        path = tmp_path / "damaged.tar"
        path.write_bytes(whole[:at])
        with pytest.raises(PthserveError, match=r"damaged or incomplete|cannot be read"):
            archive(path)
        at = random.randrange(20) * 1536 + random.randrange(100)  # the name in a header
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        with pytest.raises(PthserveError, match=r"damaged or incomplete|cannot be read"):
            archive(path)


@pytest.mark.parametrize("rest", [b"", bytes(100)])
def test_an_archive_that_ends_between_two_files_without_an_end_is_refused(
    rest: bytes, tmp_path: Path
) -> None:
    path = tar(tmp_path / "cats.tar", {"a.jpg": bytes(512)})
    path.write_bytes(path.read_bytes()[:1024] + rest)
    with pytest.raises(
        PthserveError, match="from byte 1024 on, the archive is damaged or incomplete, or another one follows"
    ):
        archive(path)


def test_archives_that_were_put_together_in_one_file_are_refused(tmp_path: Path) -> None:
    one, other = (tar(tmp_path / name, {"a.jpg": b"1"}) for name in ("1.tar", "2.tar"))
    one.write_bytes(one.read_bytes() + other.read_bytes())
    with pytest.raises(PthserveError, match="or another one follows"):
        archive(one)


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cats.tar"
    path.write_bytes(b"no archive at all" * 100)
    with pytest.raises(PthserveError, match=f"{path}: the archive cannot be read"):
        archive(path)
