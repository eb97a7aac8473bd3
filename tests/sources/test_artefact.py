"""artefact: what is unpacked of an artefact's layers, and what is refused."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from pthserve.errors import WeightsError
from pthserve.sources.artefact import LAYER, Layer, image, layers, unpack
from pthserve.sources.reference import parse
from pthserve.sources.registry import MANIFESTS, Registry
from pthserve.sources.transfer import RemoteFile, Stream

REFERENCE = parse("oci://registry.example/cats:v1")
MODELPACK = "application/vnd.cncf.model.weight.v1"


def _never(offset: int, version: str | None) -> AbstractContextManager[Stream]:
    raise AssertionError("nothing is downloaded here")


def _layer(blobs: Path, content: bytes, path: str = "", *, compressed: bool = False) -> Layer:
    blobs.mkdir(exist_ok=True)
    name = f"layer-{len(list(blobs.iterdir()))}"
    (blobs / name).write_bytes(content)
    return Layer(RemoteFile(name, name, _never), path, gzip=compressed)


def _tar(*members: tuple[str, bytes | Callable[[tarfile.TarInfo], None]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
            else:
                content(header)
                tar.addfile(header)
    return file.getvalue()


def _unpacked(tmp_path: Path, *found: Layer, most: int = 10**6) -> dict[str, bytes]:
    folder = tmp_path / "model"
    folder.mkdir()
    assert REFERENCE
    unpack(found, tmp_path / "blobs", folder, most, REFERENCE)
    return {
        one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()
    }


def test_tars_and_files_of_all_layers_make_the_folder(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    first = _layer(blobs, _tar(("./a.pth", b"a"), ("golden/1.png", b"1")))
    second = _layer(blobs, gzip.compress(_tar(("b", b"b"), ("a.pth", b"other"))), compressed=True)
    third = _layer(blobs, b"c", "proof/c.npy")
    assert _unpacked(tmp_path, first, second, third) == {
        "a.pth": b"other",
        "golden/1.png": b"1",
        "b": b"b",
        "proof/c.npy": b"c",
    }


def _kind(kind: bytes, target: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(header: tarfile.TarInfo) -> None:
        header.type, header.linkname = kind, target

    return change


@pytest.mark.parametrize(
    "member",
    [
        ("../out", b"x"),
        ("/etc/passwd", b"x"),
        ("a/../../out", b"x"),
        (".wh.a", b""),
        ("a", _kind(tarfile.SYMTYPE, "/etc/passwd")),
        ("a", _kind(tarfile.LNKTYPE, "b")),
        ("a", _kind(tarfile.CHRTYPE)),
        ("a", _kind(tarfile.FIFOTYPE)),
    ],
)
def test_what_leads_out_of_the_folder_or_is_not_a_file_is_refused(
    member: tuple[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"is refused|is a link or a device"):
        _unpacked(tmp_path, _layer(tmp_path / "blobs", _tar(member)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"not a tar", b"\0" * 511, _tar(("a", b"x" * 5000))[:1000]])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_layer_that_is_not_whole_is_told(content: bytes, compressed: bool, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a tar archive"):
        _unpacked(tmp_path, _layer(tmp_path / "blobs", content, compressed=compressed))


def test_a_small_layer_that_becomes_large_is_refused(tmp_path: Path) -> None:
    layer = _layer(tmp_path / "blobs", gzip.compress(_tar(("a", bytes(2 * 10**6)))), compressed=True)
    with pytest.raises(WeightsError, match="larger than 1000000 bytes"):
        _unpacked(tmp_path, layer)


def _of(monkeypatch: pytest.MonkeyPatch, *descriptors: dict[str, Any]) -> list[Layer]:
    digest = f"sha256:{'0' * 64}"
    given = [{"digest": digest, "size": 1, **one} for one in descriptors]
    content = json.dumps({"mediaType": MANIFESTS[0], "layers": given}).encode()
    monkeypatch.setattr(Registry, "manifest", lambda self, name: (content, MANIFESTS[0]))
    assert REFERENCE
    with Registry(REFERENCE) as registry:
        return layers(registry)


def test_modelpacks_and_what_oras_pushes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _of(
        monkeypatch,
        {"mediaType": LAYER},
        {"mediaType": f"{LAYER}+gzip"},
        {"mediaType": f"{MODELPACK}.tar"},
        {"mediaType": f"{MODELPACK}.raw", "annotations": {"org.cncf.model.filepath": "a.safetensors"}},
        {"mediaType": LAYER, "annotations": {"org.opencontainers.image.title": "b.pth"}},
    )
    assert [(one.path, one.gzip) for one in found] == [
        ("", False),
        ("", True),
        ("", False),
        ("a.safetensors", False),
        ("b.pth", False),
    ]


@pytest.mark.parametrize(
    ("descriptor", "why"),
    [
        ({"mediaType": f"{LAYER}+zstd"}, "is not supported"),
        ({"mediaType": f"{MODELPACK}.raw"}, "is refused"),
        ({"mediaType": LAYER, "annotations": {"org.opencontainers.image.title": "../a"}}, "is refused"),
        ({"mediaType": LAYER, "digest": "md5:1"}, "has no SHA-256"),
        ({"mediaType": LAYER, "size": "1"}, "has no SHA-256, or no size"),
        ({}, "is not that of an OCI artefact"),
    ],
)
def test_layers_of_other_kinds_are_refused(
    descriptor: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match=why):
        _of(monkeypatch, descriptor)


def test_an_image_is_a_tar_that_others_read_and_always_the_same(tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    names = ["b.pth", "golden/1.png", f"golden/{'n' * 150}.png"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 1000)
    made = image(tmp_path, names, {})
    assert made.digest == image(tmp_path, names[::-1], {}).digest
    with tarfile.open(fileobj=io.BytesIO(b"".join(made.content()))) as tar:
        assert tar.getnames() == sorted(names)
        assert tar.extractfile("b.pth").read() == b"b.pth" * 1000
