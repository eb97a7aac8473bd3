"""The images: what slim is made of, and that a build gives the same bytes again."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Released

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def stage(name: str) -> str:
    """The instructions of a stage of the Dockerfile."""
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


@pytest.mark.parametrize("instruction", ["ENV", "LABEL", "WORKDIR", "EXPOSE", "ENTRYPOINT", "CMD"])
def test_slim_runs_as_the_other_images_do(instruction: str) -> None:
    """It starts from nothing, and so says again what the stage `runtime` says."""
    one, other = (
        re.findall(rf"^{instruction} (?:.*\\\n)*.*$", stage(name), re.MULTILINE)
        for name in ("runtime", "slim")
    )
    assert one
    assert one == other


@pytest.mark.parametrize("name", ["slim", "batch", "full", "cuda"])
def test_no_image_runs_as_root(name: str) -> None:
    assert stage(name).rstrip().splitlines()[-1].split("  ")[0] == "USER 10001:10001"


class Image:
    """An image in an OCI layout."""

    def __init__(self, layout: Path, tag: str) -> None:
        self.layout = layout
        name = "org.opencontainers.image.ref.name"
        manifests = json.loads((layout / "index.json").read_text())["manifests"]
        (found,) = (each for each in manifests if each.get("annotations", {}).get(name) == tag)
        self.manifest = self.json(found["digest"])
        self.config = self.json(self.manifest["config"]["digest"])

    def blob(self, digest: str) -> Path:
        return self.layout / "blobs" / digest.replace(":", "/")

    def json(self, digest: str) -> Any:
        return json.loads(self.blob(digest).read_text())

    def members(self) -> Iterator[tarfile.TarInfo]:
        for layer in self.manifest["layers"]:
            with tarfile.open(self.blob(layer["digest"])) as archive:
                yield from archive


@pytest.fixture(scope="session")
def slim(released: Released) -> Image:
    return Image(released.clone.dist / "oci", "0.1.0-slim-amd64")


@pytest.mark.slow
def test_slim_has_no_program_but_python(slim: Image) -> None:
    programs = {member.name for member in slim.members() if re.match(r"(usr/)?s?bin/", member.name)}
    assert {re.sub(r"3\.\d+$", "3", name) for name in programs} == {"usr/bin/python3"}


@pytest.mark.slow
def test_nothing_in_slim_gives_a_user_more_rights(slim: Image) -> None:
    assert not [member.name for member in slim.members() if member.isfile() and member.mode & 0o6002]


@pytest.mark.slow
def test_slim_stays_small(slim: Image) -> None:
    assert sum(member.size for member in slim.members()) < 305e6


@pytest.mark.slow
def test_slim_names_the_debian_packages_that_it_is_from(slim: Image) -> None:
    folder = "var/lib/dpkg/status.d/"
    packages = {
        member.name.removeprefix(folder) for member in slim.members() if member.name.startswith(folder)
    }
    assert {"libc6", "libssl3", "libstdc++6", "zlib1g"} <= packages
    assert not {"bash", "coreutils", "dpkg"} & packages


@pytest.mark.slow
def test_compiled_modules_do_not_depend_on_times(slim: Image) -> None:
    """An image's times are all the same, so a module compiled for another time would never be used."""
    count = 0
    for layer in slim.manifest["layers"]:
        with tarfile.open(slim.blob(layer["digest"])) as archive:
            for member in archive:
                if member.name.endswith(".pyc"):
                    file = archive.extractfile(member)
                    assert file
                    assert file.read(8)[4] == 1, f"{member.name} is not an unchecked-hash module"
                    count += 1
    assert count > 1000


@pytest.mark.slow
def test_the_labels_are_those_of_this_commit(slim: Image, released: Released) -> None:
    labels = slim.config["config"]["Labels"]
    commit = released.clone.run("git", "rev-parse", "HEAD").stdout.strip()
    prefix = "org.opencontainers.image."
    assert (labels[f"{prefix}version"], labels[f"{prefix}revision"]) == ("0.1.0", commit)
    assert labels[f"{prefix}created"] == "2026-03-01T12:00:00Z"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("variant", ["slim", "batch", "full"])
def test_a_build_without_a_cache_gives_the_same_image(variant: str, tmp_path: Path) -> None:
    """It has a store of its own, which sees the base image in the other."""
    store = tmp_path / "storage.conf"
    shared = subprocess.run(["buildah", "info"], check=True, capture_output=True, text=True).stdout
    store.write_text(
        f'''[storage]
driver = "overlay"
graphroot = "{tmp_path}/graph"
runroot = "{tmp_path}/run"
[storage.options]
additionalimagestores = ["{json.loads(shared)["store"]["GraphRoot"]}"]
'''
    )

    def build(*options: str, **environment: str) -> str:
        command: list[str | Path] = [ROOT / "scripts/image", variant, "localhost/release-test:1", *options]
        done = subprocess.run(
            command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    cached = build()
    try:
        assert build("--no-cache", CONTAINERS_STORAGE_CONF=str(store)) == cached
    finally:
        subprocess.run(["buildah", "rmi", "localhost/release-test:1"], check=True)
        shutil.rmtree(tmp_path / "graph", ignore_errors=True)  # 7 GB
