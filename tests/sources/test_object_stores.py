"""object stores: models out of S3, Google Cloud Storage and Azure, from servers of each on this machine."""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pthserve.errors import WeightsError
from pthserve.options import ModelOptions
from pthserve.sources import transfer
from pthserve.sources.fetched import fetched

from ..packs import tiny_pack
from ..running import running
from .stores import STORES, Store

pytestmark = pytest.mark.slow

CONTENT = random.Random(7).randbytes(3 * 2**20 + 5)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module", params=STORES, ids=["s3", "gs", "az"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    make: Callable[[Path], AbstractContextManager[Store]] = request.param
    with make(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A bucket with the object `a.pth`, which the environment has the credentials for."""
    monkeypatch.setattr(transfer, "PAUSES", (0, 0, 0))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.put("a.pth", CONTENT)
    yield server
    server.clear()


@pytest.fixture
def options(tmp_path: Path) -> ModelOptions:
    return ModelOptions(cache_dir=tmp_path / "cache")


def test_an_object_is_a_file(store: Store, options: ModelOptions) -> None:
    found = fetched(store.address("a.pth"), options)
    assert (found.name, found.read_bytes()) == ("a.pth", CONTENT)


@pytest.mark.parametrize("key", ["packs/cats", "packs/cats/"])
def test_the_objects_below_a_key_are_a_folder(
    key: str, store: Store, options: ModelOptions, tmp_path: Path
) -> None:
    pack = tiny_pack(tmp_path / "cats").folder
    store.put_folder("packs/cats", pack)
    found = fetched(store.address(key), options)
    assert found.name == "cats"
    assert {one.relative_to(found): one.read_bytes() for one in found.rglob("*") if one.is_file()} == {
        one.relative_to(pack): one.read_bytes() for one in pack.rglob("*") if one.is_file()
    }


def test_an_unchanged_object_is_not_sent_again_and_a_changed_one_is(
    store: Store, options: ModelOptions
) -> None:
    first = fetched(store.address("a.pth"), options)
    inode = first.stat().st_ino
    assert fetched(store.address("a.pth"), options).stat().st_ino == inode
    store.put("a.pth", b"other")
    assert fetched(store.address("a.pth"), options).read_bytes() == b"other"


@pytest.fixture
def part(store: Store, options: ModelOptions, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a download leaves that is killed just before the file gets its name."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pthserve.sources.transfer.os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            fetched(store.address("a.pth"), options)
    assert options.cache_dir
    (left,) = options.cache_dir.rglob("a.pth.part")
    assert left.read_bytes() == CONTENT
    return left


@pytest.mark.parametrize("beyond", [0, 10])
def test_a_download_that_was_whole_when_it_was_killed_is_taken_or_begun_again(
    beyond: int, part: Path, store: Store, options: ModelOptions
) -> None:
    part.write_bytes(CONTENT + b"x" * beyond)
    assert fetched(store.address("a.pth"), options).read_bytes() == CONTENT


MIDDLE = 2**20
ALTERED = bytes(MIDDLE)


def test_only_the_rest_of_an_interrupted_download_is_sent(
    part: Path, store: Store, options: ModelOptions
) -> None:
    """Shown by other bytes in what has arrived, which are kept."""
    part.write_bytes(ALTERED)
    assert fetched(store.address("a.pth"), options).read_bytes() == ALTERED + CONTENT[MIDDLE:]


def test_a_rest_that_makes_another_file_than_the_expected_one_is_not_kept(
    part: Path, store: Store, options: ModelOptions
) -> None:
    part.write_bytes(ALTERED)
    pinned = options.model_copy(update={"sha256": SHA256})
    assert fetched(store.address("a.pth"), pinned).read_bytes() == CONTENT


def test_the_rest_of_another_object_is_not_added(part: Path, store: Store, options: ModelOptions) -> None:
    part.write_bytes(CONTENT[:MIDDLE])
    other = CONTENT[::-1]
    store.put("a.pth", other)
    assert fetched(store.address("a.pth"), options).read_bytes() == other


def test_another_object_than_the_pinned_one_is_refused(store: Store, options: ModelOptions) -> None:
    message = f"{store.address('a.pth')} is not the expected file: .*{SHA256}"
    with pytest.raises(WeightsError, match=message):
        fetched(store.address("a.pth"), options.model_copy(update={"sha256": "0" * 64}))
    assert options.cache_dir
    assert not [path for path in options.cache_dir.rglob("a.pth*") if path.is_file()]


@pytest.mark.parametrize("place", ["models/none.pth", "none/a.pth"])
def test_what_is_not_there_is_told_at_once(place: str, store: Store, options: ModelOptions) -> None:
    # Of a bucket that is not there, fake-gcs-server says so with the status 500.
    with pytest.raises(WeightsError, match=r"no such object|404|no bucket named none"):
        fetched(f"{store.scheme}://{place}", options)


def test_wrong_credentials_are_told_and_not_repeated(
    store: Store, options: ModelOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    (variable,) = store.wrong
    monkeypatch.setenv(variable, store.wrong[variable])
    with pytest.raises(WeightsError, match=rf"the store refuses access: .*{variable}") as caught:
        fetched(store.address("a.pth"), options)
    assert not [secret for secret in store.secrets if secret in str(caught.value)]


def test_a_folder_that_is_too_large_is_not_received(
    store: Store, options: ModelOptions, tmp_path: Path
) -> None:
    store.put_folder("cats", tiny_pack(tmp_path / "cats").folder)
    message = rf"{store.address('cats')}: is \d+ bytes, and at most 1000"
    with pytest.raises(WeightsError, match=message):
        fetched(store.address("cats"), options.model_copy(update={"max_download": 1000}))


@pytest.mark.parametrize(
    ("scheme", "variable"),
    [("s3", "AWS_ENDPOINT_URL"), ("gs", "GOOGLE_BASE_URL"), ("az", "AZURE_STORAGE_ENDPOINT")],
)
def test_an_endpoint_without_tls_on_another_machine_needs_a_digest(
    scheme: str, variable: str, options: ModelOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://store.example:9000")
    with pytest.raises(WeightsError, match=r"the endpoint http://store\.example:9000 is without TLS"):
        fetched(f"{scheme}://models/a.pth", options)


def test_a_pack_in_a_bucket_is_served_and_reloaded(store: Store, tmp_path: Path) -> None:
    store.put_folder("cats", tiny_pack(tmp_path / "one/cats", seed=1).folder)
    flags = ("--cache-dir", str(tmp_path / "cache"))
    with running(store.address("cats"), tmp_path / "log", *flags) as service:
        assert service.client.get("/info").json()["version"] == "1"
        store.put_folder("cats", tiny_pack(tmp_path / "two/cats", seed=2).folder)
        assert service.client.post("/v2/repository/models/zoo/load").status_code == 200
        assert service.client.get("/info").json()["version"] == "2"
