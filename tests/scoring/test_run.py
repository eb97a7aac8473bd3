"""run: one row per image, from every kind of source, whatever happened before."""

import gzip
import json
import logging
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from pthserve.errors import PthserveError
from pthserve.loading.model import Model
from pthserve.scoring.dataset import MANIFEST
from pthserve.scoring.output import output
from pthserve.scoring.reading import Reader
from pthserve.scoring.request import Shard
from pthserve.sources import transfer

from ..linear import noise, png
from ..sources.servers import FileServer, s3, serving
from .material import jpeg, loaded, pack, photos, rows, scored, tar

PART = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with loaded(pack(tmp_path_factory.mktemp("pack") / "cats")) as found:
        yield found


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


@pytest.mark.slow
def test_real_photos_have_the_answers_that_the_model_gives_each_alone(
    digits: Path, imagenet: Path, tmp_path: Path
) -> None:
    with loaded(digits) as real:
        summary = scored(real, digits / "golden", tmp_path / "digits")
        assert (summary.rows, summary.errors, summary.complete) == (10, 0, True)
        for digit, row in enumerate(rows(tmp_path / "digits")):
            assert row["key"] == f"{digits}/golden/{digit}.png"
            assert (row["class_index"], row["label"]) == (digit, str(digit))
            assert row["model_digest"] == real.digest
            answer = real(digits / "golden" / f"{digit}.png")
            assert row["probabilities"] == pytest.approx(answer.probabilities.tolist(), abs=1e-5)
            assert row["probability"] == pytest.approx(row["probabilities"][digit])
        scored(real, imagenet / "golden", tmp_path / "photos")
        for row in rows(tmp_path / "photos"):
            answer = real(row["key"])
            assert row["probabilities"] == pytest.approx(answer.probabilities.tolist(), abs=1e-5)


def test_a_part_has_its_rows_in_the_order_of_the_images(model: Model, tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 25)
    scored(model, source, tmp_path / "out", part_rows=PART)
    assert parts(tmp_path / "out") == [f"part-00000-0000{n}-of-00003.parquet" for n in range(3)]
    read = [
        ds.dataset(tmp_path / "out" / name).to_table()["key"].to_pylist() for name in parts(tmp_path / "out")
    ]
    assert [len(keys) for keys in read] == [10, 10, 5]
    assert [key for keys in read for key in keys] == [f"{source}/{n:04}.png" for n in range(25)]


def test_a_bad_image_is_a_row_with_an_error_and_ends_nothing(model: Model, tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 5)
    (source / "broken.jpg").write_bytes(jpeg(500, 400)[:2000])
    (source / "text.png").write_text("no image")
    (source / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (source / "large.bmp").write_bytes(bytes(2**20 + 1))
    (source / "gone.png").symlink_to("nowhere.png")
    summary = scored(model, source, tmp_path / "out", max_bytes=2**20)
    errors = {Path(row["key"]).name: row["error"] for row in rows(tmp_path / "out") if row["error"]}
    assert (summary.rows, summary.errors) == (10, 5)
    assert "HEIC" in errors.pop("phone.heic")
    assert "not a supported image" in errors.pop("text.png")
    assert "broken" in errors.pop("broken.jpg")
    assert "larger than 1048576 bytes" in errors.pop("large.bmp")
    assert "No such file" in errors.pop("gone.png")
    assert not errors


def test_an_image_that_a_list_names_and_that_is_not_there_is_a_row_with_an_error(
    model: Model, tmp_path: Path
) -> None:
    photos(tmp_path, 1)
    (tmp_path / "list.csv").write_text("image\n0000.png\nnone/0001.png\n")
    scored(model, tmp_path / "list.csv", tmp_path / "out")
    first, second = rows(tmp_path / "out")
    assert (first["key"], first["error"]) == ("0000.png", None)
    assert (second["key"], second["label"]) == ("none/0001.png", None)
    assert "No such file" in second["error"]


def test_a_source_that_is_no_longer_there_ends_the_run_and_makes_no_rows(
    model: Model, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos", 1)
    reader = Reader([source])
    source.rename(tmp_path / "unmounted")
    with pytest.raises(PthserveError, match="the folder no longer exists"):
        reader(f"{source}/0000.png", 2**20)


# --- archives -----------------------------------------------------------------------------------------------


def sample(count: int, first: int = 0) -> dict[str, bytes]:
    """A WebDataset's files: an image and its label each."""
    found: dict[str, bytes] = {}
    for number in range(first, first + count):
        found |= {f"{number:04}.png": png(noise(number, 24, 32)), f"{number:04}.cls": b"1"}
    return found


def test_a_tar_and_several_have_a_row_for_each_image(model: Model, tmp_path: Path) -> None:
    tar(tmp_path / "tars" / "a.tar", sample(12))
    tar(tmp_path / "tars" / "b.tar.gz", sample(3, 12), "w:gz")
    tar(tmp_path / "tars" / "empty.tar", {"0.cls": b"1"})
    scored(model, tmp_path / "tars", tmp_path / "out", part_rows=PART)
    found = rows(tmp_path / "out")
    archives = ["a.tar"] * 12 + ["b.tar.gz"] * 3
    assert [row["key"] for row in found] == [
        f"{tmp_path}/tars/{name}/{n:04}.png" for n, name in enumerate(archives)
    ]
    for n, row in enumerate(found):
        assert row["class_index"] == model(png(noise(n, 24, 32))).class_index
    assert parts(tmp_path / "out") == [
        "part-00000-00000-of-00002.parquet",
        "part-00000-00001-of-00002.parquet",
        "part-00001-00000-of-00001.parquet",
        "part-00002-00000-of-00001.parquet",
    ]


def test_archives_are_divided_among_shards(model: Model, tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / "tars" / f"{number}.tar", sample(4, 4 * number))
    ends = [
        scored(model, tmp_path / "tars", tmp_path / "out", shard=Shard(index, 4)) for index in (3, 1, 0, 2)
    ]
    assert [summary.rows for summary in ends] == [0, 4, 4, 4]
    assert [summary.complete for summary in ends] == [False, False, False, True]
    assert len({row["key"] for row in rows(tmp_path / "out")}) == len(rows(tmp_path / "out")) == 12


def test_an_archive_that_has_changed_since_is_refused(model: Model, tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", sample(12))
    scored(model, tmp_path / "a.tar", tmp_path / "out", part_rows=PART)
    tar(tmp_path / "a.tar", sample(30))
    with pytest.raises(PthserveError, match="holds results for other archives"):
        scored(model, tmp_path / "a.tar", tmp_path / "out", part_rows=PART)


# --- going on -----------------------------------------------------------------------------------------------


def test_parts_that_are_there_are_not_scored_again(model: Model, tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 25)
    (source / "0011.png").write_text("no image")
    scored(model, source, tmp_path / "out", part_rows=PART)
    before = rows(tmp_path / "out")
    lost = tmp_path / "out" / "part-00000-00002-of-00003.parquet"
    kept = tmp_path / "out" / "part-00000-00001-of-00003.parquet"
    lost.unlink()
    (tmp_path / "out" / ".part-00000-00002-of-00003.parquet.0.tmp").write_text("of a killed process")
    inode = kept.stat().st_ino
    summary = scored(model, source, tmp_path / "out", part_rows=PART)
    assert (summary.rows, summary.earlier, summary.errors) == (25, 20, 1)
    assert kept.stat().st_ino == inode
    assert rows(tmp_path / "out") == before
    assert not list((tmp_path / "out").glob(".*"))


def test_a_part_that_is_damaged_is_written_again(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = photos(tmp_path / "photos", 25)
    scored(model, source, tmp_path / "out", part_rows=PART)
    before = rows(tmp_path / "out")
    part = tmp_path / "out" / "part-00000-00001-of-00003.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, "pthserve"):
        assert scored(model, source, tmp_path / "out", part_rows=PART).earlier == 15
    assert rows(tmp_path / "out") == before
    assert "is damaged, and is written again" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("photo", r"holds results for other images: 3 there, 4 in the sources now.* --restart"),
        ("model", r"holds results of another model: .*--restart"),
        ("part_rows", r"was begun with part_rows = 10, and now it is 20; give the same value again"),
        ("shards", r"was begun with shards = 1, and now it is 2"),
    ],
)
def test_what_has_changed_is_refused_with_what_to_do(
    change: str, message: str, model: Model, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos", 3)
    scored(model, source, tmp_path / "out", part_rows=PART)
    if change == "photo":
        photos(source, 1, first=3)
    other = replace(model, labels=tuple(reversed(model.labels))) if change == "model" else model
    shard = Shard(0, 2) if change == "shards" else Shard(0, 1)
    with pytest.raises(PthserveError, match=message):
        scored(other, source, tmp_path / "out", part_rows=20 if change == "part_rows" else PART, shard=shard)
    assert len(rows(tmp_path / "out")) == 3


def test_restart_discards_the_results_and_nothing_else(model: Model, tmp_path: Path) -> None:
    scored(model, photos(tmp_path / "a", 25), tmp_path / "out", part_rows=PART)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    summary = scored(model, photos(tmp_path / "b", 3), tmp_path / "out", restart=True)
    assert (summary.rows, summary.earlier) == (3, 0)
    assert [row["key"] for row in rows_of_parts(tmp_path / "out")] == [
        f"{tmp_path}/b/{n:04}.png" for n in range(3)
    ]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def rows_of_parts(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = ds.dataset(sorted(folder.glob("*.parquet"))).to_table().to_pylist()
    return found


def test_a_folder_with_parquet_files_of_something_else_is_refused(model: Model, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.parquet").write_bytes(b"")
    with pytest.raises(PthserveError, match="holds Parquet files that are not parts of a run"):
        scored(model, photos(tmp_path / "photos", 1), tmp_path / "out")


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"format": 1, "model": 1}'])
def test_a_manifest_that_cannot_be_read_is_refused(content: str, model: Model, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text(content)
    with pytest.raises(PthserveError, match="--restart"):
        scored(model, photos(tmp_path / "photos", 1), tmp_path / "out")


def test_the_manifest_names_the_classes_in_the_order_of_the_probabilities(
    model: Model, tmp_path: Path
) -> None:
    scored(model, photos(tmp_path / "photos", 1), tmp_path / "out")
    there = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert there["model"]["labels"] == list(model.labels)
    assert there["model"]["digest"] == model.digest


def test_a_disk_that_is_full_ends_the_run_and_leaves_no_part(model: Model, tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 30)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1800, before[1]))  # enough for the manifest
    try:
        with pytest.raises(PthserveError, match=f"{tmp_path}/out: the results cannot be written here"):
            scored(model, source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MANIFEST]
    assert scored(model, source, tmp_path / "out").rows == 30


# --- shards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 7, 12])
def test_shards_score_every_image_once_whatever_their_number(
    count: int, model: Model, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos", 10)
    ends = [scored(model, source, tmp_path / "out", shard=Shard(n, count)) for n in reversed(range(count))]
    assert [row["key"] for row in rows(tmp_path / "out")] == [f"{source}/{n:04}.png" for n in range(10)]
    assert [summary.complete for summary in ends] == [False] * (count - 1) + [True]
    assert max(summary.rows for summary in ends) - min(summary.rows for summary in ends) <= 1


@pytest.mark.slow
def test_a_data_set_is_one_for_pandas_and_duckdb(model: Model, tmp_path: Path) -> None:
    import duckdb
    import pandas as pd

    source = photos(tmp_path / "photos", 10)
    (source / "9999.png").write_text("no image")
    for index in range(3):
        scored(model, source, tmp_path / "out", shard=Shard(index, 3), part_rows=2)
    frame = pd.read_parquet(tmp_path / "out").sort_values("key")
    assert len(frame) == 11
    assert frame["error"].notna().sum() == 1
    assert frame["label"].dropna().tolist() == [model(source / f"{n:04}.png").label for n in range(10)]
    found = duckdb.sql(
        f"select label, count(*) n, max(probability) from '{tmp_path}/out/*.parquet' where error is null "
        "group by label"
    ).fetchall()
    assert sum(count for _, count, _ in found) == 10


# --- the network --------------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts."""
    monkeypatch.setattr(transfer, "PAUSES", (0, 0, 0))


@pytest.fixture
def web(tmp_path: Path, hasty: None) -> Iterator[FileServer]:
    folder = photos(tmp_path / "served", 4)
    with serving(FileServer(folder)) as server:
        yield server


def test_the_addresses_of_a_list_are_read_over_http(web: FileServer, model: Model, tmp_path: Path) -> None:
    addresses = [f"{web.url}/{n:04}.png?key=secret{n}" for n in range(4)] + [f"{web.url}/none.png?key=secret"]
    (tmp_path / "list.txt").write_text("\n".join(addresses))
    summary = scored(model, tmp_path / "list.txt", tmp_path / "out")
    found = {row["key"]: row for row in rows(tmp_path / "out")}
    assert list(found) == addresses
    assert [found[address]["class_index"] for address in addresses[:4]] == [
        model(png(noise(n, 24, 32))).class_index for n in range(4)
    ]
    assert summary.errors == 1
    assert "responds with 404" in found[addresses[-1]]["error"]
    assert "secret" not in found[addresses[-1]]["error"]


def test_a_list_and_an_archive_may_be_at_an_address(web: FileServer, model: Model, tmp_path: Path) -> None:
    (web.folder / "list.csv").write_text(f"url\n{web.url}/0001.png\n")
    tar(web.folder / "cats.tar", sample(2))
    scored(model, f"{web.url}/list.csv", tmp_path / "one")
    scored(model, f"{web.url}/cats.tar", tmp_path / "two")
    assert [row["key"] for row in rows(tmp_path / "one")] == [f"{web.url}/0001.png"]
    assert [row["key"] for row in rows(tmp_path / "two")] == [
        f"{web.url}/cats.tar/{n:04}.png" for n in range(2)
    ]


def test_no_credential_of_the_environment_is_sent_to_the_servers_of_a_list(
    web: FileServer, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTHSERVE_FETCH_AUTHORIZATION", "Bearer secret")
    tar(web.folder / "cats.tar", sample(1))
    for name in ("0000.png", "cats.tar"):
        (tmp_path / "list.txt").write_text(f"{web.url}/{name}")
        scored(model, tmp_path / "list.txt", tmp_path / name)
    assert len(web.asked) >= 2
    assert not any("authorization" in headers for _, headers in web.asked)


def test_what_is_interrupted_is_tried_again(web: FileServer, model: Model, tmp_path: Path) -> None:
    broken: list[str] = []

    def cut(path: str) -> int | None:
        broken.append(path)
        return 100 if broken.count(path) <= 2 else None

    web.cut = cut
    (tmp_path / "list.txt").write_text("\n".join(f"{web.url}/{n:04}.png" for n in range(4)))
    assert scored(model, tmp_path / "list.txt", tmp_path / "out").errors == 0
    assert all(broken.count(path) == 3 for path in broken)


def test_a_server_that_is_gone_ends_the_run_and_what_was_written_stays(
    web: FileServer, model: Model, tmp_path: Path
) -> None:
    gone = {"/0003.png"}
    web.cut = lambda path: 100 if path in gone else None
    (tmp_path / "list.txt").write_text("\n".join(f"{web.url}/{n:04}.png" for n in range(4)))
    with pytest.raises(
        PthserveError, match=r"/0003\.png cannot be downloaded.* again to continue, or .*--skip"
    ):
        scored(model, tmp_path / "list.txt", tmp_path / "out", part_rows=1)
    gone.clear()
    assert scored(model, tmp_path / "list.txt", tmp_path / "out", part_rows=1).rows == 4


def test_a_server_that_is_gone_for_good_is_skipped_if_asked_for(
    web: FileServer, model: Model, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text(f"http://127.0.0.1:1/a.png\n{web.url}/0000.png")
    summary = scored(model, tmp_path / "list.txt", tmp_path / "out", skip_unreachable=True)
    assert (summary.rows, summary.errors) == (2, 1)


def test_a_compressed_list_is_told_to_be_none(web: FileServer, model: Model, tmp_path: Path) -> None:
    (web.folder / "list.gz").write_bytes(gzip.compress(b"a.png"))
    with pytest.raises(PthserveError, match="neither a folder nor a list in UTF-8"):
        scored(model, f"{web.url}/list.gz", tmp_path / "out")


def test_a_list_from_elsewhere_names_no_files_of_this_machine(
    web: FileServer, model: Model, tmp_path: Path
) -> None:
    for name in ("/etc/passwd", "../../a.png"):
        (web.folder / "list.txt").write_text(name)
        with pytest.raises(PthserveError, match="neither an address nor a path below the list's folder"):
            scored(model, f"{web.url}/list.txt", tmp_path / "out")


@pytest.fixture
def bucket(tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "s3" / "data"
    folder.mkdir(parents=True)
    with s3(folder.parent, tmp_path / "s3.log", "key", "secretkey") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secretkey")
        yield folder


@pytest.mark.slow
def test_a_bucket_is_read_and_written(bucket: Path, model: Model, tmp_path: Path) -> None:
    photos(bucket / "photos" / "deep", 25)
    (bucket / "photos" / "text.png").write_text("no image")
    scored(model, "s3://data/photos", "s3://data/out", part_rows=PART)
    before = rows(bucket / "out")
    assert [row["key"] for row in before if row["error"] is None] == [
        f"s3://data/photos/deep/{n:04}.png" for n in range(25)
    ]
    # By the store itself, which keeps its listings for a while.
    output("s3://data/out").remove("part-00000-00001-of-00003.parquet")
    summary = scored(model, "s3://data/photos", "s3://data/out", part_rows=PART)
    assert (summary.rows, summary.earlier, summary.errors) == (26, 16, 1)
    assert rows(bucket / "out") == before
    with output("s3://data/photos/deep").writing("0025.png") as path:
        path.write_bytes(png(noise(25, 24, 32)))
    with pytest.raises(PthserveError, match="s3://data/out: holds results for other images"):
        scored(model, "s3://data/photos", "s3://data/out", part_rows=PART)
    summary = scored(model, "s3://data/photos", "s3://data/out", part_rows=PART, restart=True)
    assert (summary.rows, summary.earlier) == (27, 0)


@pytest.mark.slow
def test_archives_and_lists_may_be_in_a_bucket(bucket: Path, model: Model, tmp_path: Path) -> None:
    tar(bucket / "tars" / "0.tar", sample(3))
    tar(bucket / "tars" / "1.tar", sample(3, 3))
    photos(bucket / "photos", 1)
    (bucket / "list.txt").write_text("photos/0000.png\nphotos/none.png\n")
    scored(model, "s3://data/tars/", tmp_path / "one")
    scored(model, "s3://data/list.txt", tmp_path / "two")
    assert [row["key"] for row in rows(tmp_path / "one")] == [
        f"s3://data/tars/{n // 3}.tar/{n:04}.png" for n in range(6)
    ]
    first, second = rows(tmp_path / "two")
    assert (first["key"], first["error"]) == ("photos/0000.png", None)
    assert second["error"] == "there is no such object"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["source", "output"])
def test_wrong_credentials_end_the_run_at_once(
    what: str, bucket: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    places = ("s3://data/photos", tmp_path / "out")
    if what == "output":
        places = (str(photos(tmp_path / "photos", 1)), "s3://data/out")  # type: ignore[assignment]
    with pytest.raises(PthserveError, match=r"the store refuses access|403 Forbidden"):
        scored(model, *places)
