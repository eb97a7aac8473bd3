"""What is in a model archive of TorchServe: read in each of its formats, and refused where it is not safe."""

import io
import json
import os
import random
import tarfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pthserve.errors import WeightsError
from pthserve.files import torchserve
from pthserve.files.torchserve import Manifest, opened

from .archives import FORMATS, archive, manifest

FILES = {"pets.pth": os.urandom(3 * 2**20), "index_to_name.json": b'{"0": "cat", "1": ["n02", "dog"]}'}


def read(path: Path, name: str = "pets.pth") -> bytes:
    with opened(path) as found:
        target = io.BytesIO()
        found.copy(found.manifest().weights if name == "pets.pth" else name, target)
        return target.getvalue()


def labels(folder: Path, text: bytes) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    with opened(archive(folder, {"pets.pth": b"x", "index_to_name.json": text})) as found:
        return found.labels()


@pytest.mark.parametrize("archive_format", FORMATS)
def test_each_format_of_the_archiver_is_read(tmp_path: Path, archive_format: str) -> None:
    path = archive(tmp_path, FILES, archive_format, modelFile="model.py", configFile="config.yaml")
    with opened(path) as found:
        assert found.manifest() == Manifest(
            "pets", "1.0", "pets.pth", "image_classifier", "model.py", None, "config.yaml"
        )
        assert found.labels() == (("cat", "dog"), ())
    assert read(path) == FILES["pets.pth"]


@pytest.mark.parametrize("archive_format", FORMATS)
def test_what_the_archive_lacks_is_said(tmp_path: Path, archive_format: str) -> None:
    with (
        opened(archive(tmp_path, {"other.pth": b"x"}, archive_format)) as found,
        pytest.raises(WeightsError, match=r"names the weights pets\.pth, which are not in the archive"),
    ):
        found.manifest()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"0": "cat", "1": "dog"}', (("cat", "dog"), ())),
        (b'\xef\xbb\xbf{"1": "dog", "0": "cat"}', (("cat", "dog"), ())),
        (b'{"0": ["n01", "cat"], "1": ["n02", "dog"]}', (("cat", "dog"), ())),
        (b'{"object_type_names": ["cat", "dog"]}', (("cat", "dog"), ())),
        (b'{"0": "cat", "3": "dog", "1": "cow"}', (("cat", "cow", "2", "dog"), (2,))),
        ('{"0": "Käse", "1": "\\ud83d\\ude00"}'.encode(), (("Käse", "\N{GRINNING FACE}"), ())),
    ],
)
def test_labels_in_torchserve_s_forms(tmp_path: Path, text: bytes, expected: object) -> None:
    assert labels(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[]", "must be a mapping of index to label"),
        (b"{}", "must be a mapping of index to label"),
        (b'{"cat": "0"}', "'cat' must be the index of a class"),
        (b'{"-1": "cat"}', "'-1' must be the index"),
        (b'{"0": 7}', "the label of class 0 must be text"),
        (b'{"0": []}', "the label of class 0 must be text"),
        (b'{"0": ""}', "the label of class 0 must be text"),
        (b'{"0": "\\ud83d"}', "surrogate"),
        (b'{"0": "cat", "9999999": "dog"}', "names fewer than half of the classes"),
        (b"{", "cannot be parsed"),
        (b"\xff\xfe", "utf-8"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path: Path, text: bytes, words: str) -> None:
    with pytest.raises(WeightsError, match=f"index_to_name.json: .*{words}"):
        labels(tmp_path, text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"serializedFile": None}, "names no serializedFile"),
        ({"serializedFile": "../../etc/passwd"}, "must be the name of a file, not"),
        ({"serializedFile": "/etc/passwd"}, "must be the name of a file"),
        ({"serializedFile": ".."}, "must be the name of a file"),
        ({"serializedFile": "a\\b"}, "must be the name of a file"),
        ({"serializedFile": 7}, "model.serializedFile must be text, not 7"),
        ({"modelName": ["x"]}, "model.modelName must be text"),
        ({"modelName": "a\nb"}, "model.modelName must be text"),
        ({"modelFile": "a/b.py"}, "model.modelFile must be the name of a file"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(tmp_path: Path, model: dict[str, Any], words: str) -> None:
    with (
        opened(archive(tmp_path, FILES, **model)) as found,
        pytest.raises(WeightsError, match=f"MANIFEST.json: .*{words}"),
    ):
        found.manifest()


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"model": 7}', b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "pets.mar", "w") as made:
        made.writestr("MAR-INF/MANIFEST.json", text)
    with opened(tmp_path / "pets.mar") as found, pytest.raises(WeightsError, match=r"MANIFEST\.json"):
        found.manifest()


# --- archives that are not safe


def zipped(folder: Path, name: str, content: bytes = b"x", mode: int = 0, **options: int) -> Path:
    path = archive(folder, FILES)
    with zipfile.ZipFile(path, "a") as made:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        made.writestr(entry, content, **options)
    return path


def tarred(folder: Path, **fields: object) -> Path:
    path = folder / "pets.tar.gz"
    with tarfile.open(path, "w:gz") as made:
        entry = tarfile.TarInfo("pets/MAR-INF/MANIFEST.json")
        entry.size = len(manifest())
        made.addfile(entry, io.BytesIO(manifest()))
        entry = tarfile.TarInfo("pets/pets.pth")
        for key, value in fields.items():
            setattr(entry, key, value)
        made.addfile(entry, io.BytesIO(bytes(entry.size)))
    return path


def refused(path: Path, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        read(path)


@pytest.mark.parametrize("name", ["../evil.py", "a/../../evil.py", "/tmp/evil.py", "a\\..\\evil.py"])
def test_a_name_that_leads_out_of_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    refused(zipped(tmp_path, name), "names a file outside of the archive")
    refused(tarred(tmp_path, name=name), "names a file outside of the archive")


def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path, "link", b"/etc/passwd", 0o120777), "link is a link")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        refused(tarred(tmp_path, type=kind, linkname="/etc/passwd"), "is a link, or another special file")


def test_links_out_of_a_folder_are_refused_and_those_in_it_are_followed(tmp_path: Path) -> None:
    folder = archive(tmp_path, FILES, "no-archive")
    (folder / "pets.pth").rename(folder / "real.pth")
    (folder / "pets.pth").symlink_to("real.pth")
    assert read(folder) == FILES["pets.pth"]
    (folder / "pets.pth").unlink()
    (folder / "pets.pth").symlink_to("/etc/passwd")
    refused(folder, "pets.pth: lies outside of the folder")
    (folder / "pets.pth").unlink()
    os.mkfifo(folder / "pets.pth")
    refused(folder, "pets.pth: is not a regular file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path, "pets.pth"), "pets.pth is there twice")
    refused(tarred(tmp_path, name="pets/MAR-INF/MANIFEST.json"), "is there twice")
    with zipfile.ZipFile(path := archive(tmp_path, FILES), "a") as made:
        made.writestr("other/MAR-INF/MANIFEST.json", manifest())
    refused(path, "has several files MAR-INF/MANIFEST.json")


@pytest.mark.slow
@pytest.mark.parametrize("archive_format", ["default", "tgz"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, archive_format: str) -> None:
    path = archive(tmp_path, {"pets.pth": bytes(200 * 2**20)}, archive_format)
    assert path.stat().st_size < 2**20
    began = time.process_time()
    refused(path, "more than 50 times its size")
    assert time.process_time() - began < 5


def test_a_long_header_of_a_tar_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("pets/pets.pth")
    entry.pax_headers = {"comment": "x" * 3 * 2**20}
    with tarfile.open(tmp_path / "pets.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as made:
        made.addfile(entry)
    refused(tmp_path / "pets.tar.gz", "has a header that is too long")


def test_more_files_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchserve, "ENTRIES", 20)
    for archive_format in FORMATS:
        files = {**FILES, **{f"{number}.txt": b"" for number in range(20)}}
        refused(archive(tmp_path, files, archive_format), "has more than 20 files")


def test_a_manifest_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pets.mar", "w", zipfile.ZIP_STORED) as made:
        made.writestr("MAR-INF/MANIFEST.json", b" " * (torchserve.SMALL + 1))
    refused(tmp_path / "pets.mar", "has more than 4,194,304 bytes")


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x80\x02}q\x00."])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pets.mar").write_bytes(content)
    refused(tmp_path / "pets.mar", "is neither a .mar nor a .tar.gz archive")


def test_an_archive_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pets.mar", "w") as made:
        made.writestr("pets.pth", b"x")
    refused(tmp_path / "pets.mar", "it has no MAR-INF/MANIFEST.json")
    refused(tmp_path, "it has no MAR-INF/MANIFEST.json")
    (tmp_path / "gone.mar").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "gone.mar", "No such file")


@pytest.mark.slow
@pytest.mark.parametrize("archive_format", ["default", "tgz"])
def test_damaged_archives_are_refused_and_nothing_else_happens(tmp_path: Path, archive_format: str) -> None:
    files = {"pets.pth": os.urandom(20_000), "index_to_name.json": json.dumps({"0": "cat"}).encode()}
    whole = archive(tmp_path, files, archive_format).read_bytes()
    seed = random.randrange(10**6)
    print("seed", seed)
    rng, path = random.Random(seed), tmp_path / "damaged"
    for _ in range(300):
        data = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.randrange(1, 9)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        with suppress(WeightsError):
            assert len(read(path)) <= len(files["pets.pth"])
