"""docs/sources.md: its commands run, against servers of this machine."""

import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..linear import noise, png
from ..packs import tiny_pack
from ..test_docs import ROOT, commands
from .keys import authority
from .servers import FileServer, program, registry, s3, serving

pytestmark = pytest.mark.slow

COMMANDS = commands((ROOT / "docs" / "sources.md").read_text())


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """The environment of the page's commands, and the names of servers in them."""
    content = b"the weights of cats" * 1000
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "cats.pth").write_bytes(content)
    (tmp_path / "cats.pth.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  cats.pth\n")
    (tmp_path / "cat.png").write_bytes(png(noise(1)))
    tiny_pack(tmp_path / "s3" / "models" / "cats")
    tiny_pack(tmp_path / "cats")
    certificate, context = authority(tmp_path)
    (tmp_path / "docker").mkdir()
    with (
        serving(FileServer(tmp_path / "served"), context) as web,
        s3(tmp_path / "s3", tmp_path / "s3.log", "key", "secret") as endpoint,
        registry(tmp_path) as host,
    ):
        environment = {
            **os.environ,
            "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "SSL_CERT_FILE": str(certificate),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "DOCKER_CONFIG": str(tmp_path / "docker"),
        }
        yield environment, {"models.example": web.url.removeprefix("https://"), "registry.example": host}


def test_the_commands_of_the_page_run(
    prepared: tuple[dict[str, str], dict[str, str]], tmp_path: Path
) -> None:
    environment, names = prepared
    shown = [command for command in COMMANDS if not command.startswith("helm")]
    assert len(shown) >= 10
    for command in shown:
        own = functools.reduce(lambda text, name: text.replace(name, names[name]), names, command)
        done = subprocess.run(
            own, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if " push " in command:
            assert f"oci://{names['registry.example']}/team/cats@sha256:" in done.stdout
    assert (tmp_path / "cats" / "model.sig").exists()
    signed = json.loads((tmp_path / "cats" / "model.sig").read_text())
    assert signed["mediaType"].startswith("application/vnd.dev.sigstore.bundle")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("helm")])
def test_the_chart_has_the_values_that_the_page_names(command: str) -> None:
    rest = command.removeprefix("helm upgrade")
    done = subprocess.run(
        f"{program('helm')} template {rest} --set networkPolicy.enabled=false",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "name: fetch" in done.stdout
