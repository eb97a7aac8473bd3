"""A card's code runs where who types the command allows it, and at no other command, path or time."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pthserve.cli import bench, demo, fetch, golden, inspect, pack, predict, serve, tune
from pthserve.errors import ArchitectureError
from pthserve.loading.load import load
from pthserve.settings import Settings

from ..linear import noise, png
from ..zoo import CODE, tiny_folder

BUILD = {"serve": serve, "pack": pack, "golden": golden, "tune": tune, "predict": predict}
"""The commands that build a model."""
QUICK = Settings(engine="torch", precision="fp32", device="cpu", tune_budget=0, threads=1)


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pthserve", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder with a model whose card names a function that leaves a mark."""
    folder = tiny_folder(tmp_path)
    (folder / "model.yaml").write_text(
        f"architecture: os:system\nkwargs: {{command: 'touch {folder}/ran'}}\n"
    )
    (folder / "image.png").write_bytes(png(noise(1)))
    return folder


def test_every_command_that_builds_has_the_option_and_no_other() -> None:
    for module in (*BUILD.values(), bench, fetch, inspect):
        names = {parameter.name for parameter in module.command.params}
        assert ("allow_code" in names) == (module in BUILD.values()), module.__name__


@pytest.mark.slow
@pytest.mark.parametrize("command", [*BUILD, "inspect"])
@pytest.mark.parametrize("by", ["folder", "file"])
def test_no_command_runs_what_is_not_allowed(command: str, by: str, trap: Path, tmp_path: Path) -> None:
    source = trap if by == "folder" else trap / "tiny.pth"
    more: dict[str, list[Any]] = {
        "pack": ["-o", tmp_path / "out"],
        "predict": [trap / "image.png"],
        "serve": ["--port", "0"],
    }
    done = run(command, source, *more.get(command, []))
    assert not (trap / "ran").exists()
    assert "Traceback" not in done.stderr
    if command == "inspect":
        assert (done.returncode, "names code: os:system" in done.stdout) == (0, True), done.stderr
    else:
        assert (done.returncode, "add --allow-code os " in done.stderr) == (3, True), done.stderr


def test_what_is_allowed_is_still_held_to_be_a_model(trap: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"must be an nn\.Module"):
        load(str(trap), QUICK.model_copy(update={"allow_code": "os"}))
    assert not (trap / "ran").exists()


def test_a_card_cannot_allow_itself_anything(trap: Path) -> None:
    for field in ("allow_code: os", "allow-code: os", "allowCode: os"):
        (trap / "model.yaml").write_text(f"architecture: os:system\n{field}\n")
        with pytest.raises(Exception, match="is not a field"):
            load(str(trap), QUICK)


@pytest.mark.slow
def test_a_model_of_a_users_own_is_served_where_its_module_is_allowed(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    with pytest.raises(ArchitectureError, match=f"add --allow-code {CODE} "):
        load(str(folder), QUICK)
    for allowed in (CODE, f"os,{CODE}", "tests"):
        model = load(str(folder), QUICK.model_copy(update={"allow_code": allowed}))
        assert model.architecture == "tests.zoo:tiny"


@pytest.mark.slow
def test_the_demo_allows_its_own_package_and_only_for_itself(imagenet: Path, tmp_path: Path) -> None:
    for name in ("demo", str(imagenet)):
        settings = demo.resolved(QUICK.model_copy(update={"model": name}))
        assert load(settings.model, settings).num_classes == 1000
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.yaml", "labels.txt", "efficientnet-lite0.pth", "golden"):
        (copy / name).symlink_to(imagenet / name)
    (copy / "model.yaml").unlink()
    text = (imagenet / "model.yaml").read_text().partition("labels:")[0]
    (copy / "model.yaml").write_text(text)
    with pytest.raises(ArchitectureError, match="add --allow-code efficientnet_lite_pytorch "):
        load(str(copy), QUICK)
