"""listing: what a source names, in which order, and what is refused."""

import os
from pathlib import Path

import pytest

from pthserve.errors import PthserveError
from pthserve.scoring.listing import IMAGE_SUFFIXES, Listing, listed
from pthserve.scoring.reading import Reader

from .material import photos, tar


def names(*sources: Path | str, column: str | None = None) -> Listing:
    return listed([str(one) for one in sources], column, Reader())


def keys(*sources: Path | str, column: str | None = None) -> list[str]:
    return [entry.key for entry in names(*sources, column=column).entries]


def test_a_folder_names_the_images_in_it_at_any_depth_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "a.JPEG", "b/1.webp", "c/d/e.tiff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert keys(tmp_path) == [
        f"{tmp_path}/{name}" for name in ("a.JPEG", "b/1.webp", "b/2.jpg", "c/d/e.tiff")
    ]


def test_other_files_and_hidden_ones_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "labels.csv", "Thumbs.db", ".hidden.jpg", ".cache/b.jpg", "more.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = names(tmp_path)
    assert [entry.key for entry in found.entries] == [f"{tmp_path}/a.jpg"]
    assert found.skipped == 5


def test_an_image_of_a_format_that_is_not_supported_is_not_passed_over_in_silence() -> None:
    assert {".heic", ".avif"} < set(IMAGE_SUFFIXES)


def test_a_file_whose_name_is_not_utf_8_has_a_key_and_can_be_read(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"content")
    (entry,) = names(tmp_path).entries
    assert entry.key == f"{tmp_path}/caf\ufffd.png"
    assert Reader()(entry.place, 100) == b"content"


def test_a_link_to_a_folder_is_not_followed_so_that_none_is_listed_twice(tmp_path: Path) -> None:
    photos(tmp_path / "a", 1)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert len(keys(tmp_path)) == 1


def test_the_paths_of_a_list_are_relative_to_it_and_keys_are_as_written(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 2)
    list_ = tmp_path / "list.txt"
    list_.write_text("photos/0001.png\n\n  photos/0000.png \nhttps://photos.example/a?size=1\n")
    found = names(list_).entries
    assert [entry.key for entry in found] == [
        "photos/0001.png",
        "photos/0000.png",
        "https://photos.example/a?size=1",
    ]
    assert found[0].place == f"{tmp_path}/photos/0001.png"


@pytest.mark.parametrize("header", ["path,class", "Image,class", "URL,class"])
def test_a_csv_file_has_a_column_of_a_usual_name(header: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f'\ufeff{header}\n"a,b.jpg",cat\nc.jpg,dog\n')
    assert keys(tmp_path / "list.csv") == ["a,b.jpg", "c.jpg"]


def test_another_column_of_a_csv_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("id\tpicture\n1\ta.jpg\n")
    assert keys(tmp_path / "list.tsv", column="picture") == ["a.jpg"]
    with pytest.raises(PthserveError, match=r"no column path, .* with --column: id, picture"):
        keys(tmp_path / "list.tsv")


def test_a_row_without_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\na.jpg\n' '\n".replace("' '", '" "'))
    with pytest.raises(PthserveError, match="row 3 has no value in the column path"):
        keys(tmp_path / "list.csv")


def test_archives_are_found_by_their_names_alone_in_folders_and_in_lists(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar.gz", "c.tgz"):
        tar(tmp_path / name, {"1.png": b"1"})
    (tmp_path / "list.txt").write_text("b.tar\n")
    assert names(tmp_path / "b.tar").archives
    assert keys(tmp_path / "b.tar") == [f"{tmp_path}/b.tar"]
    assert keys(tmp_path / "list.txt") == ["b.tar"]
    (tmp_path / "list.txt").unlink()
    assert keys(tmp_path) == [f"{tmp_path}/{name}" for name in ("a.tar.gz", "b.tar", "c.tgz")]


def test_several_sources_follow_each_other(tmp_path: Path) -> None:
    one, other = photos(tmp_path / "b", 1), photos(tmp_path / "a", 1)
    assert keys(one, other, one / "0000.png") == [f"{one}/0000.png", f"{other}/0000.png", f"{one}/0000.png"]


def test_the_digest_is_of_the_names_their_order_and_the_sizes_of_archives(tmp_path: Path) -> None:
    one, other = photos(tmp_path / "a", 2), photos(tmp_path / "b", 2)
    digests = {names(one).digest, names(one, other).digest, names(other, one).digest}
    assert len(digests) == 3
    assert names(one).digest == names(one).digest
    archive = tar(tmp_path / "a.tar", {"1.png": b"1"})
    before = names(archive).digest
    tar(archive, {"1.png": b"1", "2.png": bytes(20_000)})
    assert names(archive).digest != before


def test_a_mixture_of_images_and_archives_is_refused(tmp_path: Path) -> None:
    folder, archive = photos(tmp_path / "a", 1), tar(tmp_path / "a.tar", {"1.png": b"1"})
    with pytest.raises(PthserveError, match="score them in separate runs"):
        names(folder, archive)
    (tmp_path / "list.txt").write_text("a/0000.png\na.tar\n")
    with pytest.raises(PthserveError, match="names both images and archives"):
        names(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none", "no such file or folder"),
        ("empty", "there are no images here"),
        ("model.bin", "neither a folder nor a list in UTF-8"),
        ("hf://owner/name", "images are read from https://, s3://"),
        ("ftp://photos.example/a.jpg", "ftp:// is not supported"),
    ],
)
def test_what_cannot_be_a_source_is_refused(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.bin").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(PthserveError, match=message):
        keys(source if "://" in source else tmp_path / source)
