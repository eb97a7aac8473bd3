"""registry: models pushed into the distribution project's registry, and read back from it."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pthserve.cli.push import push
from pthserve.errors import PackError, WeightsError
from pthserve.loading import packed
from pthserve.options import ModelOptions
from pthserve.sources import transfer
from pthserve.sources.fetched import fetched

from ..packs import tiny_pack
from ..running import running
from .servers import program, registry
from .servers import running as running_program

pytestmark = pytest.mark.slow

PASSWORD = "$2b$05$.5lXaR8qiqShh4xlnfQiDO1z8SvIAbntIyRugkTnk4fEA1ZgjGhz2"
"""Of the user `user`: "secretpassword", as bcrypt hashes it."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(transfer, "PAUSES", (0, 0, 0))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with registry(tmp_path) as found:
        yield found


@pytest.fixture
def options(tmp_path: Path) -> ModelOptions:
    return ModelOptions(cache_dir=tmp_path / "cache")


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return tiny_pack(tmp_path / "cats").folder


def test_a_pack_comes_back_as_it_was(host: str, pack: Path, options: ModelOptions) -> None:
    address = push(pack, f"oci://{host}/team/cats:v1")
    for one in (address, f"oci://{host}/team/cats:v1"):
        found = fetched(one, options)
        assert (found.name, packed.sums(found)) == ("cats", packed.sums(pack))
        packed.read(found)


def test_the_same_pack_has_the_same_digest(host: str, pack: Path, tmp_path: Path) -> None:
    again = tiny_pack(tmp_path / "again").folder
    assert (
        push(pack, f"oci://{host}/a:v1").rpartition("@")[2]
        == push(again, f"oci://{host}/b:v2").rpartition("@")[2]
    )


def test_what_a_digest_names_needs_no_registry_once_it_is_here(
    host: str, pack: Path, options: ModelOptions
) -> None:
    address = push(pack, f"oci://{host}/cats:v1")
    first = fetched(address, options)
    gone = address.replace(host, "127.0.0.1:1")
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        fetched(gone, options)
    blobs = options.cache_dir.parent / "registry"
    blobs.rename(blobs.with_name("gone"))
    assert fetched(address, options) == first


def test_a_tag_that_moves_brings_the_other_model(
    host: str, pack: Path, options: ModelOptions, tmp_path: Path
) -> None:
    push(pack, f"oci://{host}/cats:v1")
    assert packed.read(fetched(f"oci://{host}/cats:v1", options)).version == "0"
    push(tiny_pack(tmp_path / "new", seed=2).folder, f"oci://{host}/cats:v1")
    assert packed.read(fetched(f"oci://{host}/cats:v1", options)).version == "2"


def test_a_blob_that_was_altered_in_the_registry_is_refused(
    host: str, pack: Path, options: ModelOptions, tmp_path: Path
) -> None:
    address = push(pack, f"oci://{host}/cats:v1")
    largest = max((tmp_path / "registry").rglob("data"), key=lambda one: one.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(WeightsError, match="is not the expected file: its SHA-256 is"):
        fetched(address, options)
    assert not list(options.cache_dir.rglob("model.xml"))


def test_a_manifest_that_was_altered_in_the_registry_is_refused(
    host: str, pack: Path, options: ModelOptions, tmp_path: Path
) -> None:
    address = push(pack, f"oci://{host}/cats:v1")
    digest = address.rpartition(":")[2]
    data = tmp_path / "registry/docker/registry/v2/blobs/sha256" / digest[:2] / digest / "data"
    data.write_bytes(data.read_bytes().replace(b'"schemaVersion":2', b'"schemaVersion": 2'))
    with pytest.raises(
        WeightsError, match=r"another manifest|cannot be downloaded|no such artefact|responds with"
    ):
        fetched(address, options)


@pytest.mark.parametrize("name", ["cats:v2", f"cats@sha256:{'0' * 64}", "none:v1"])
def test_what_is_not_there_is_told(name: str, host: str, pack: Path, options: ModelOptions) -> None:
    push(pack, f"oci://{host}/cats:v1")
    with pytest.raises(WeightsError, match="no such artefact in the registry"):
        fetched(f"oci://{host}/{name}", options)


def test_a_pack_that_was_changed_is_not_pushed(host: str, pack: Path) -> None:
    (pack / "manifest.json").write_text("{}")
    with pytest.raises(PackError, match=r"manifest\.json was changed"):
        push(pack, f"oci://{host}/cats:v1")


@pytest.mark.parametrize("address", ["cats", "https://host/cats", f"oci://host/cats@sha256:{'0' * 64}"])
def test_a_model_is_pushed_to_a_registry_and_a_tag(address: str, pack: Path) -> None:
    with pytest.raises(WeightsError, match="is pushed to oci://registry/name:tag"):
        push(pack, address)


def test_credentials_are_those_of_docker(
    pack: Path, options: ModelOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = tmp_path / "users"
    users.write_text(f"user:{PASSWORD}\n")
    docker = tmp_path / "docker"
    docker.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(docker))
    with registry(tmp_path, users) as host:
        with pytest.raises(WeightsError, match="the registry refuses access"):
            push(pack, f"oci://{host}/cats:v1")
        auth = base64.b64encode(b"user:secretpassword").decode()
        (docker / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        address = push(pack, f"oci://{host}/cats:v1")
        assert packed.sums(fetched(address, options)) == packed.sums(pack)
        (docker / "config.json").write_text(json.dumps({"credHelpers": {host: "test"}}))
        helper = tmp_path / "docker-credential-test"
        helper.write_text(
            '#!/bin/sh\ncat >/dev/null\necho \'{"Username": "user", "Secret": "secretpassword"}\'\n'
        )
        helper.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        push(pack, f"oci://{host}/cats:v2")


def test_a_pushed_pack_is_served(host: str, pack: Path, tmp_path: Path) -> None:
    address = push(pack, f"oci://{host}/team/cats:v1")
    with running(address, tmp_path / "log", "--cache-dir", str(tmp_path / "cache")) as service:
        assert service.client.get("/info").json()["name"] == "zoo"


@pytest.mark.skipif(os.geteuid() != 0, reason="containerd mounts as root")
@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_containerd_mounts_a_pushed_pack_as_a_volume_of_the_image(
    platform: str, host: str, pack: Path, tmp_path: Path
) -> None:
    name = push(pack, f"oci://{host}/team/cats:v1").removeprefix("oci://")
    own = tmp_path / "containerd"
    own.mkdir()
    socket, configuration, mount = own / "c.sock", own / "config.toml", tmp_path / "mount"
    configuration.write_text(
        f'version = 3\nroot = "{own}/root"\nstate = "{own}/state"\n'
        f'[grpc]\naddress = "{socket}"\n[ttrpc]\naddress = "{own}/t.sock"\n'
    )
    mount.mkdir()
    client: list[str | Path] = [program("containerd").parent / "ctr", "--address", socket, "images"]
    command: list[str | Path] = [program("containerd"), "--config", configuration]
    with running_program(command, "containerd successfully booted", own / "log"):
        pull: list[str | Path] = [*client, "pull", "--plain-http", "--platform", platform, name]
        subprocess.run(pull, check=True, capture_output=True, timeout=60)
        subprocess.run([*client, "mount", "--platform", platform, name, mount], check=True, timeout=60)
        try:
            assert packed.sums(mount) == packed.sums(pack)
        finally:
            subprocess.run([*client, "unmount", mount], check=True, timeout=60)
    for line in Path("/proc/self/mounts").read_text().splitlines():  # its mount manager leaves one
        if line.split()[1].startswith(f"{own}/"):
            subprocess.run(["umount", line.split()[1]], check=True, timeout=60)
