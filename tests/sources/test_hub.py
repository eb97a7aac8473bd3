"""hub: which files of a repository a model needs, and how they come."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pthserve.errors import WeightsError
from pthserve.sources.hub import wanted
from pthserve.sources.reference import Reference, parse

from ..packs import tiny_pack
from .hub_server import COMMIT, Hub, serving

CONFIGURED = ["config.json", "preprocessor_config.json"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def _reference(address: str = "hf://team/cats") -> Reference:
    found = parse(address)
    assert found
    return found


@pytest.mark.parametrize(
    ("has", "takes"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (
            [*CONFIGURED, "model.safetensors", "README.md", ".gitattributes"],
            [*CONFIGURED, "model.safetensors"],
        ),
        (
            ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"],
            ["model.safetensors"],
        ),
        (["pytorch_model.bin", "training_args.bin", "config.json"], ["config.json", "pytorch_model.bin"]),
        (
            [*SHARDS, "model.safetensors.index.json", "pytorch_model.bin"],
            ["model.safetensors.index.json", *SHARDS],
        ),
        (["best.pth", "labels.txt", "notes.md"], ["labels.txt", "best.pth"]),
        (["model.onnx", "onnx/model.onnx"], ["model.onnx"]),
        (["model.yaml", "a.pth", "b.pth"], ["model.yaml", "a.pth", "b.pth"]),
        (["SHA256SUMS", "manifest.json", "model.bin", "proof/images.npy"], None),
    ],
)
def test_the_weights_once_and_what_describes_them(has: Sequence[str], takes: Sequence[str] | None) -> None:
    assert sorted(wanted(has, ".", _reference())) == sorted(takes or has)


def test_a_folder_of_the_repository_is_a_model() -> None:
    names = ["model.safetensors", "small/model.safetensors", "small/config.json"]
    assert sorted(wanted(names[1:], "small", _reference())) == sorted(names[1:])


@pytest.mark.parametrize(
    ("has", "why"),
    [
        (["README.md"], r"has no weights file in it; it has README\.md"),
        (
            ["a.pth", "b.pth"],
            r"several weights files: a\.pth, b\.pth; name one, such as hf://team/cats@main/a\.pth",
        ),
        ([], "it has no files"),
    ],
)
def test_what_nobody_can_choose_is_asked(has: Sequence[str], why: str) -> None:
    with pytest.raises(WeightsError, match=why):
        wanted(has, ".", _reference())


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    repository = tmp_path / "hub" / "google" / "vit"
    repository.mkdir(parents=True)
    for name in CONFIGURED:
        (repository / name).write_text("{}")
    (repository / "model.safetensors").write_bytes(b"s" * 100_000)
    (repository / "pytorch_model.bin").write_bytes(b"p" * 100_000)
    with serving(Hub(tmp_path / "hub", token="hf_token")) as server:
        yield server


def _fetch(hub: Hub, address: str, output: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    own = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_token",
        "HF_HOME": str(output.parent / "home"),
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", "pthserve", "fetch", address, "-o", str(output)],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_repository_comes_from_the_mirror_that_hf_endpoint_names(hub: Hub, tmp_path: Path) -> None:
    hub.failures = 2
    done = _fetch(hub, "hf://google/vit@v1", tmp_path / "vit")
    assert done.returncode == 0, done.stderr
    assert sorted(one.name for one in (tmp_path / "vit").iterdir()) == [
        *CONFIGURED[:1],
        "model.safetensors",
        CONFIGURED[1],
    ]
    files = [path for _, path, _ in hub.asked if "/resolve/" in path]
    assert all(f"/resolve/{COMMIT}/" in path for path in files), "of one commit"


@pytest.mark.slow
def test_the_token_is_not_sent_to_the_host_of_large_files(hub: Hub, tmp_path: Path) -> None:
    done = _fetch(hub, "hf://google/vit/pytorch_model.bin", tmp_path / "model.bin")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.bin").read_bytes() == b"p" * 100_000
    redirected = [authorization for host, path, authorization in hub.asked if path.startswith("/cdn/")]
    assert redirected == [None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "environment", "why"),
    [
        ("hf://google/vit", {"HF_TOKEN": "hf_other"}, "there is no such repository, or it is private"),
        ("hf://google/none", {}, "there is no such repository"),
        ("hf://google/vit@v9", {}, "has no such revision"),
        ("hf://google/vit", {"HF_HUB_OFFLINE": "1"}, "offline"),
        (
            "hf://google/vit",
            {"HF_ENDPOINT": "http://mirror.example"},
            "the mirror http://mirror.example is without TLS",
        ),
    ],
)
def test_what_cannot_be_had_is_told(
    address: str, environment: dict[str, str], why: str, hub: Hub, tmp_path: Path
) -> None:
    done = _fetch(hub, address, tmp_path / "vit", **environment)
    assert done.returncode == 3
    assert why in done.stderr
    assert not (tmp_path / "vit").exists()


@pytest.mark.slow
def test_a_large_file_that_is_not_what_the_hub_says_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.altered = True
    done = _fetch(hub, "hf://google/vit", tmp_path / "vit")
    assert done.returncode == 3
    assert "is not the expected file: its SHA-256 is" in done.stderr
    assert not (tmp_path / "vit").exists()


@pytest.mark.slow
def test_a_pack_in_a_repository_comes_whole(hub: Hub, tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path / "hub" / "team" / "cats").folder
    done = _fetch(hub, "hf://team/cats", tmp_path / "cats")
    assert done.returncode == 0, done.stderr
    assert {one.name for one in (tmp_path / "cats").rglob("*")} == {one.name for one in pack.rglob("*")}
