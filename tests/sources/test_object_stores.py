"""object stores: models out of S3, from rclone's S3 server over files."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pthserve.errors import WeightsError
from pthserve.options import ModelOptions
from pthserve.sources import transfer
from pthserve.sources.fetched import fetched

from ..packs import tiny_pack
from ..running import running
from .servers import s3

pytestmark = pytest.mark.slow

CONTENT = random.Random(7).randbytes(3 * 2**20 + 5)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KEY, SECRET = "AKIDEXAMPLE", "verysecretkey"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the bucket `models`, which the environment has the credentials for."""
    folder = tmp_path / "s3" / "models"
    folder.mkdir(parents=True)
    (folder / "a.pth").write_bytes(CONTENT)
    monkeypatch.setattr(transfer, "PAUSES", (0, 0, 0))
    with s3(folder.parent, tmp_path / "s3.log", KEY, SECRET) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield folder


@pytest.fixture
def options(tmp_path: Path) -> ModelOptions:
    return ModelOptions(cache_dir=tmp_path / "cache")


def test_an_object_is_a_file(bucket: Path, options: ModelOptions) -> None:
    found = fetched("s3://models/a.pth", options)
    assert (found.name, found.read_bytes()) == ("a.pth", CONTENT)


@pytest.mark.parametrize("address", ["s3://models/packs/cats", "s3://models/packs/cats/"])
def test_the_objects_below_a_key_are_a_folder(address: str, bucket: Path, options: ModelOptions) -> None:
    tiny_pack(bucket / "packs/cats")
    found = fetched(address, options)
    assert found.name == "cats"
    assert {one.relative_to(found) for one in found.rglob("*")} == {
        one.relative_to(bucket / "packs/cats") for one in (bucket / "packs/cats").rglob("*")
    }


def test_an_unchanged_object_is_not_sent_again_and_a_changed_one_is(
    bucket: Path, options: ModelOptions
) -> None:
    first = fetched("s3://models/a.pth", options)
    inode = first.stat().st_ino
    assert fetched("s3://models/a.pth", options).stat().st_ino == inode
    (bucket / "a.pth").write_bytes(b"other")
    assert fetched("s3://models/a.pth", options).read_bytes() == b"other"


@pytest.mark.parametrize("beyond", [0, 10])
def test_a_download_that_was_whole_when_it_was_killed_is_taken_or_begun_again(
    beyond: int, bucket: Path, options: ModelOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pthserve.sources.transfer.os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            fetched("s3://models/a.pth", options)
    assert options.cache_dir
    (part,) = options.cache_dir.rglob("a.pth.part")
    part.write_bytes(CONTENT + b"x" * beyond)
    assert fetched("s3://models/a.pth", options).read_bytes() == CONTENT


def test_another_object_than_the_pinned_one_is_refused(bucket: Path, options: ModelOptions) -> None:
    with pytest.raises(WeightsError, match=f"s3://models/a.pth is not the expected file: .*{SHA256}"):
        fetched("s3://models/a.pth", options.model_copy(update={"sha256": "0" * 64}))


@pytest.mark.parametrize("address", ["s3://models/none.pth", "s3://none/a.pth"])
def test_what_is_not_there_is_told_at_once(address: str, bucket: Path, options: ModelOptions) -> None:
    with pytest.raises(WeightsError, match=r"no such object|404"):
        fetched(address, options)


def test_wrong_credentials_are_told_and_not_repeated(
    bucket: Path, options: ModelOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anothersecretkey")
    with pytest.raises(WeightsError, match=r"the store refuses access: .*AWS_ACCESS_KEY_ID") as caught:
        fetched("s3://models/a.pth", options)
    assert "anothersecretkey" not in str(caught.value)


def test_a_folder_that_is_too_large_is_not_received(bucket: Path, options: ModelOptions) -> None:
    tiny_pack(bucket / "cats")
    with pytest.raises(WeightsError, match=r"s3://models/cats: is \d+ bytes, and at most 1000"):
        fetched("s3://models/cats", options.model_copy(update={"max_download": 1000}))


def test_an_endpoint_without_tls_on_another_machine_needs_a_digest(
    options: ModelOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.example:9000")
    with pytest.raises(WeightsError, match=r"the endpoint http://minio\.example:9000 is without TLS"):
        fetched("s3://models/a.pth", options)


def test_a_pack_in_a_bucket_is_served_and_reloaded(bucket: Path, tmp_path: Path) -> None:
    tiny_pack(bucket / "cats", seed=1)
    flags = ("--cache-dir", str(tmp_path / "cache"))
    with running("s3://models/cats", tmp_path / "log", *flags) as service:
        assert service.client.get("/info").json()["version"] == "1"
        new = bucket.parent / "new"
        tiny_pack(new, seed=2)
        (bucket / "cats").rename(bucket.parent / "old")
        new.rename(bucket / "cats")
        assert service.client.post("/v2/repository/models/zoo/load").status_code == 200
        assert service.client.get("/info").json()["version"] == "2"
