"""fetched: a model from a web server, whole and checked, or not at all; and never twice without need."""

import hashlib
import os
import random
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pthserve.errors import WeightsError
from pthserve.options import ModelOptions
from pthserve.sources import transfer
from pthserve.sources.fetched import fetched

from .servers import FileServer, serving

CONTENT = random.Random(7).randbytes(3 * 2**20 + 5)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = random.Random(8).randbytes(2**20)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSES", (0, 0, 0))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.pth").write_bytes(CONTENT)
    with serving(FileServer(folder)) as state:
        yield state


@pytest.fixture
def options(tmp_path: Path) -> ModelOptions:
    return ModelOptions(cache_dir=tmp_path / "cache")


def _cut_once(at: int) -> "Iterator[int | None]":
    yield at
    while True:
        yield None


def test_a_path_is_returned_as_it_is(options: ModelOptions) -> None:
    assert fetched("models/a.pth", options) == Path("models/a.pth")


def test_the_file_has_its_name_and_its_content(server: FileServer, options: ModelOptions) -> None:
    found = fetched(f"{server.url}/a.pth", options)
    assert found.name == "a.pth"
    assert found.read_bytes() == CONTENT


def test_an_unchanged_file_is_not_sent_again(server: FileServer, options: ModelOptions) -> None:
    first = fetched(f"{server.url}/a.pth", options)
    inode = first.stat().st_ino
    again = fetched(f"{server.url}/a.pth", options)
    assert (again, again.stat().st_ino) == (first, inode)


def test_a_changed_file_is_another_one_and_the_one_before_stays(
    server: FileServer, options: ModelOptions
) -> None:
    first = fetched(f"{server.url}/a.pth", options)
    (server.folder / "a.pth").write_bytes(OTHER)
    second = fetched(f"{server.url}/a.pth", options)
    assert second.read_bytes() == OTHER
    assert first.read_bytes() == CONTENT


def test_only_the_last_two_versions_stay(server: FileServer, options: ModelOptions) -> None:
    versions = []
    for number in range(4):
        (server.folder / "a.pth").write_bytes(bytes([number]) * 1000)
        versions.append(fetched(f"{server.url}/a.pth", options))
    assert [one.exists() for one in versions] == [False, False, True, True]


def test_what_is_pinned_and_here_needs_no_server(server: FileServer, options: ModelOptions) -> None:
    pinned = options.model_copy(update={"sha256": SHA256})
    fetched(f"{server.url}/a.pth", pinned)
    server.asked.clear()
    assert fetched(f"{server.url}/a.pth", pinned).read_bytes() == CONTENT
    assert not server.asked


def test_a_broken_download_goes_on_where_it_broke(server: FileServer, options: ModelOptions) -> None:
    cuts = _cut_once(2**20)
    server.cut = lambda _: next(cuts)
    assert fetched(f"{server.url}/a.pth", options).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={2**20}-"]


def test_a_file_that_changes_during_a_break_is_begun_again(server: FileServer, options: ModelOptions) -> None:
    cuts = _cut_once(2**20)

    def cut(_: str) -> int | None:
        at = next(cuts)
        if at is not None:  # the file of this request is read; the next one finds another
            (server.folder / "a.pth").write_bytes(OTHER + CONTENT)
        return at

    server.cut = cut
    assert fetched(f"{server.url}/a.pth", options).read_bytes() == OTHER + CONTENT


def test_without_entity_tags_or_a_digest_nothing_is_pieced_together(
    server: FileServer, options: ModelOptions
) -> None:
    server.tags = False
    cuts = _cut_once(2**20)
    server.cut = lambda _: next(cuts)
    assert fetched(f"{server.url}/a.pth", options).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_a_download_that_always_breaks_ends(server: FileServer, options: ModelOptions) -> None:
    server.cut = lambda _: 0
    with pytest.raises(WeightsError, match=r"a\.pth cannot be downloaded: "):
        fetched(f"{server.url}/a.pth", options)
    assert len(server.asked) == 4
    assert not list(options.cache_dir.rglob("a.pth"))


def test_a_download_that_brings_little_at_a_time_ends(
    server: FileServer, options: ModelOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 10)
    server.cut = lambda _: 1000
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        fetched(f"{server.url}/a.pth", options)
    assert len(server.asked) == 10


def test_another_file_than_the_pinned_one_is_refused(server: FileServer, options: ModelOptions) -> None:
    (server.folder / "a.pth").write_bytes(OTHER)
    with pytest.raises(WeightsError, match=f"SHA-256 is {hashlib.sha256(OTHER).hexdigest()}, not {SHA256}"):
        fetched(f"{server.url}/a.pth", options.model_copy(update={"sha256": SHA256}))
    assert not list(options.cache_dir.rglob("a.pth*"))


@pytest.mark.parametrize("most", [len(CONTENT) - 1, 1])
def test_a_file_that_is_too_large_is_not_received(
    most: int, server: FileServer, options: ModelOptions
) -> None:
    with pytest.raises(WeightsError, match=f"larger than the {most} bytes that may be downloaded"):
        fetched(f"{server.url}/a.pth", options.model_copy(update={"max_download": most}))


def test_a_disk_without_room_is_told_before_the_download(
    server: FileServer, options: ModelOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(Path.cwd())._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WeightsError, match=f"{len(CONTENT)} bytes are needed and 1000 are free"):
        fetched(f"{server.url}/a.pth", options)


def test_many_at_once_download_once(server: FileServer, options: ModelOptions) -> None:
    pinned = options.model_copy(update={"sha256": SHA256})
    barrier = threading.Barrier(6)

    def bring() -> bytes:
        barrier.wait()
        return fetched(f"{server.url}/a.pth", pinned).read_bytes()

    with ThreadPoolExecutor(6) as pool:
        found = [task.result() for task in [pool.submit(bring) for _ in range(6)]]
    assert found == [CONTENT] * 6
    assert len(server.asked) == 1


@pytest.mark.slow
@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"version": "x"}', b'{"version": "..", "files": {}}'])
def test_a_damaged_record_is_as_none(record: bytes, server: FileServer, options: ModelOptions) -> None:
    fetched(f"{server.url}/a.pth", options)
    (file,) = options.cache_dir.rglob("record.json")
    file.write_bytes(record)
    assert fetched(f"{server.url}/a.pth", options).read_bytes() == CONTENT


def test_without_tls_another_machine_needs_a_digest(options: ModelOptions) -> None:
    with pytest.raises(WeightsError, match="without TLS, the file can be changed in transit"):
        fetched("http://models.example/a.pth", options)


def test_a_redirect_to_a_machine_without_tls_needs_a_digest(
    server: FileServer, options: ModelOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.redirect = "http://models.example/a.pth"
    with pytest.raises(WeightsError, match=r"http://models\.example/a\.pth: without TLS"):
        fetched(f"{server.url}/a.pth", options)


def test_the_authorization_comes_from_the_environment(
    server: FileServer, options: ModelOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.authorization = "Bearer secret"
    with pytest.raises(WeightsError, match="responds with 401"):
        fetched(f"{server.url}/a.pth", options)
    monkeypatch.setenv("PTHSERVE_FETCH_AUTHORIZATION", "Bearer secret")
    assert fetched(f"{server.url}/a.pth", options).read_bytes() == CONTENT


def test_a_copy_is_made_of_regular_files_only(options: ModelOptions, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pth")
    signed = options.model_copy(update={"require_signature": tmp_path / "key.pub"})
    with pytest.raises(WeightsError, match="is not a regular file"):
        fetched(str(tmp_path / "model.pth"), signed)


def test_a_folder_that_cannot_be_written_is_told(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"cannot be stored in .*; name another folder with --cache-dir"):
        fetched(f"{server.url}/a.pth", ModelOptions(cache_dir=tmp_path / "file"))
