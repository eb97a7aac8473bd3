"""The cache: whole entries or none, whoever is killed, and no more of them than there is room for."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pthserve.files.regular_files import sha256
from pthserve.loading import packed
from pthserve.loading.cache import ENTRY, PACK, PACKS, Cache, Entry, UnusableCache
from pthserve.options import ModelOptions
from pthserve.planning.plan import Plan

from ..packs import tiny_pack

ROOM = 2**30
KILLS = 25

WRITER = """
import itertools, shutil, sys
from pathlib import Path
from pthserve.loading.cache import Cache

cache, source = Cache(Path(sys.argv[1]), 2**30), Path(sys.argv[2])
print("ready", flush=True)
for number in itertools.count():
    with cache.locked("key"):
        part = cache.part("key")
        shutil.copytree(source, part / "pack")
        cache.put(part, "key", {"warnings": [["pthserve", 30, str(number)]]})
"""
"""Writes one entry again and again, until it is killed."""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model; to be read only."""
    folder = tmp_path_factory.mktemp("made") / "pack"
    tiny_pack(folder)
    return folder


def put(cache: Cache, key: str, pack: Path, **values: object) -> Entry:
    with cache.locked(key):
        part = cache.part(key)
        shutil.copytree(pack, part / PACK)
        return cache.put(part, key, values)


def names(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()}


def test_what_was_put_is_found(tmp_path: Path, pack: Path) -> None:
    cache = Cache(tmp_path, ROOM)
    assert cache.find("key") is None
    warnings = [("pthserve.loading", 30, "a wärning")]
    made = put(cache, "key", pack, warnings=warnings)
    found = cache.find("key")
    assert found == made
    assert found is not None
    assert found.warnings == tuple(warnings)
    assert packed.read(found.pack).digest == packed.read(pack).digest
    assert names(cache) == {"key", "key.lock"}


def test_the_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    folder = Cache(tmp_path, ROOM).folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(UnusableCache, match=f"users other than {os.geteuid()} may write to it"):
        Cache(tmp_path, ROOM)
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnusableCache, match="may write to it"):
        Cache(tmp_path, ROOM)


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnusableCache, match="Not a directory"):
        Cache(tmp_path / "file", ROOM)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no entry"])
def test_a_damaged_entry_is_not_found(tmp_path: Path, pack: Path, damage: str) -> None:
    cache = Cache(tmp_path, ROOM)
    file = put(cache, "key", pack).folder / ENTRY
    text = file.read_text()
    match damage:
        case "cut":
            file.write_text(text[: len(text) // 2])
        case "changed":
            file.write_text(text.replace("warnings", "warmings"))
        case "missing":
            file.unlink()
        case _:
            shutil.rmtree(file.parent)
    assert cache.find("key") is None


def test_an_entry_counts_only_while_what_was_read_for_it_is_the_same(tmp_path: Path, pack: Path) -> None:
    cache, code = Cache(tmp_path, ROOM), tmp_path / "net.py"
    code.write_text("layers = 3")
    put(cache, "key", pack, read=[(str(code), sha256(code))])
    assert cache.find("key")
    code.write_text("layers = 4")
    assert cache.find("key") is None
    code.unlink()
    assert cache.find("key") is None


def test_plans_are_kept_for_the_options_that_they_were_measured_with(tmp_path: Path, pack: Path) -> None:
    entry = put(Cache(tmp_path, ROOM), "key", pack)
    one, two = ModelOptions(threads=1), ModelOptions(threads=2)
    plan = Plan("openvino", "fp32", reason="measured", digest="00", cpu="x", library="y")
    assert entry.plan(one) is None
    entry.keep_plan(plan, one)
    assert entry.plan(one) == plan
    assert entry.plan(two) is None
    assert entry.plan(ModelOptions(threads=1, precision="bf16")) is None
    assert packed.read(entry.pack)


def test_the_entries_that_were_not_used_for_longest_go(tmp_path: Path, pack: Path) -> None:
    size = sum(file.stat().st_size for file in pack.rglob("*"))
    cache = Cache(tmp_path, 3 * size)
    for number, key in enumerate("abcd"):
        entry = put(cache, key, pack)
        os.utime(entry.folder / ENTRY, (number, number))
    assert cache.find("a")  # by which it is used
    cache.trim(keep="d")
    kept = {name for name in names(cache) if "." not in name}
    assert "b" not in kept
    assert {"a", "d"} <= kept
    assert all(name.removesuffix(".lock") in kept for name in names(cache))


def test_an_entry_that_is_in_use_or_is_to_be_kept_stays_whatever_its_size(tmp_path: Path, pack: Path) -> None:
    cache = Cache(tmp_path, 0)
    for key in "abc":
        put(cache, key, pack)
    with Cache(tmp_path, 0).locked("a", shared=True):
        cache.trim(keep="b")
        assert {name for name in names(cache) if "." not in name} == {"a", "b"}


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ROOM)
    with cache.locked("key"):
        left = cache.part("key")
        (left / "file").touch()
        cache.trim(keep="other")
        assert left.exists()  # the lock is held: it is being written
        assert left != cache.part("key")
        assert not left.exists()
    cache.trim(keep="other")
    assert names(cache) == set()


@pytest.mark.slow
def test_whoever_is_killed_while_writing_leaves_a_whole_entry_or_none(tmp_path: Path, pack: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    cache = Cache(tmp_path, ROOM)
    whole = 0
    for _ in range(KILLS):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(pack)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0, 0.1))  # the moment at which it is killed
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with cache.locked("key", shared=True):
            entry = cache.find("key")
            if entry is not None:
                assert packed.read(entry.pack).digest == packed.read(pack).digest
                whole += 1
        put(cache, "key", pack)  # nothing keeps the next one from writing
        assert names(cache) == {"key", "key.lock"}
    print(f"{whole} of {KILLS} found a whole entry")
    body = (tmp_path / PACKS / "key" / ENTRY).read_text().split("\n")[0]
    assert json.loads(body)["needs_torch"] == ""
