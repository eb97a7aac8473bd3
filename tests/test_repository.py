"""The files for those who carry on: the licence, how to contribute, templates, and what editors read."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from pthserve.cli.main import COMMANDS
from pthserve.settings import Settings

from .test_docs import commands

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOOLS = ("python", "pytest", "ruff", "mypy", "shellcheck")


def files() -> list[Path]:
    """What git has, or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


# --- the licence ------------------------------------------------------------------------------------------


def test_package_chart_and_image_name_the_licence_that_is_in_the_repository() -> None:
    name = "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    chart = yaml.safe_load((ROOT / "charts" / "pthserve" / "Chart.yaml").read_text())
    assert PROJECT["project"]["license"] == name
    assert chart["annotations"]["artifacthub.io/license"] == name
    assert f'org.opencontainers.image.licenses="{name}"' in (ROOT / "Dockerfile").read_text()


def test_the_images_have_the_same_labels_and_settings() -> None:
    """The full images inherit those of the stage `runtime`, and slim, which begins empty, repeats them."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL))

    def settings(stage: str) -> list[str]:
        kept = ("LABEL", "ENV", "WORKDIR", "EXPOSE", "ENTRYPOINT", "CMD")
        return sorted(line for line in stages[stage].splitlines() if line.startswith(kept))

    assert settings("slim") == settings("runtime")
    assert len(settings("slim")) == 6


@pytest.mark.slow
def test_the_wheel_carries_the_licence(tmp_path: Path) -> None:
    """Built of what the Dockerfile copies, so the image builds too."""
    (copied,) = re.findall(
        r"^COPY (pyproject\.toml .*) \./$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    for name in copied.split():
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "service", tmp_path / "service", ignore=shutil.ignore_patterns("__pycache__"))
    demo = ROOT / "weights" / "imagenet"
    shutil.copytree(demo, tmp_path / "weights" / "imagenet", ignore=shutil.ignore_patterns("*.pth", "packed"))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as opened:
        held = {name.partition(".dist-info/")[2]: name for name in opened.namelist()}
        assert opened.read(held["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
        assert b"License-Expression: Apache-2.0" in opened.read(held["METADATA"])


# --- how to contribute ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone with the programs of this environment, so that `make env` downloads nothing.

    It has mypy's cache, too: `make test` begins with `make check`, which has checked these types.
    """
    clone = tmp_path_factory.mktemp("clone")
    for path in files():
        target = clone / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)
    subprocess.run("git init -q && git add -A", shell=True, cwd=clone, check=True)
    programs = clone / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in TOOLS:
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(str(Path(sys.executable).with_name(name)))} "$@"\n')
        program.chmod(0o755)
    if (ROOT / ".mypy_cache").is_dir():
        shutil.copytree(ROOT / ".mypy_cache", clone / ".mypy_cache")
    stamp = "cat requirements.lock pyproject.toml | sha256sum >.venv/.made-from"
    subprocess.run(stamp, shell=True, cwd=clone, check=True)
    return clone


@pytest.mark.slow
@pytest.mark.parametrize("command", commands((ROOT / "CONTRIBUTING.md").read_text()))
def test_a_command_for_contributors_works_in_a_clean_clone_and_leaves_its_files_as_they_are(
    command: str, clone: Path
) -> None:
    """All but the tests themselves: of them the clone's are collected, and `make test` is only read."""
    if command == "make docs" and not shutil.which("helm") and os.environ.get("CI") != "true":
        built = subprocess.run([ROOT / "k8s" / "local" / "programs", "helm"], capture_output=True, text=True)
        if built.returncode:
            pytest.skip(f"cannot build Helm: {built.stderr.strip()[-200:]}")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "MAKE"))
    }
    environment |= {"PYTHONPATH": str(clone / "service")}
    if command == "make check" or command.endswith(" tests"):
        environment["PYTEST_ADDOPTS"] = (
            "--collect-only -p no:cacheprovider -W ignore::UserWarning"  # of syrupy, which ran nothing
        )
    line = command.replace("make test", "make -n test")
    done = subprocess.run(
        line, shell=True, cwd=clone, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True)
    assert not [line for line in changed.stdout.splitlines() if not line.startswith("A  ")]


def hooks() -> list[dict[str, Any]]:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local", "a hook from elsewhere is a download"
    return list(repository["hooks"])


@pytest.mark.slow
@pytest.mark.parametrize("hook", hooks(), ids=lambda hook: hook["id"])
def test_a_pre_commit_hook_accepts_every_file_of_its_kind(hook: dict[str, Any], clone: Path) -> None:
    assert (hook["language"], hook["entry"].split()[0].startswith(".venv/bin/")) == ("system", True)
    kinds = {*hook.get("types", []), *hook.get("types_or", [])}
    fitting = [
        path.relative_to(ROOT)
        for path in files()
        if ("python" in kinds and path.suffix == ".py")
        or ("pyi" in kinds and path.suffix == ".pyi")
        or ("shell" in kinds and re.match(rb"#!.*\b(ba)?sh\b", path.read_bytes()[:60]))
    ]
    assert fitting
    given = fitting if hook.get("pass_filenames", True) else []
    done = subprocess.run(
        [*hook["entry"].split(), *given], cwd=clone, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- templates, and what editors read ---------------------------------------------------------------------

FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize(
    "path", [path for path in FORMS if path.stem != "config"], ids=lambda path: path.stem
)
def test_an_issue_form_is_one_that_github_shows(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert (
        {"name", "description", "body"} <= form.keys() <= {"name", "description", "body", "labels", "title"}
    )
    questions = [element for element in form["body"] if element["type"] != "markdown"]
    names = [element["id"] for element in questions]
    assert len(names) == len(set(names)) > 0
    for element in form["body"]:
        assert element.keys() <= {"type", "id", "attributes", "validations"}
        known = {
            "markdown": {"value"},
            "textarea": {"label", "description", "placeholder", "value", "render"},
            "input": {"label", "description", "placeholder", "value"},
            "dropdown": {"label", "description", "multiple", "options", "default"},
        }[element["type"]]
        assert element["attributes"].keys() <= known
        assert "value" in element["attributes"] or element["attributes"]["label"]


def test_the_dev_container_is_set_up_by_a_target_of_make() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    target = container["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert container["forwardPorts"] == [Settings.model_fields["port"].default]


def test_every_file_is_as_the_editors_are_told() -> None:
    sections = re.split(r"^\[(.+)\]$", (ROOT / ".editorconfig").read_text(), flags=re.MULTILINE)
    told = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert f"max_line_length = {PROJECT['tool']['ruff']['line-length']}\n" in told["*.py"]
    wrong = []
    for path in files():
        content = path.read_bytes()
        if b"\0" in content[:8000]:
            continue
        whole = (
            not content or content.endswith(b"\n") or path.is_relative_to(ROOT / "k8s" / "local" / "tools")
        )
        if not whole or b"\r" in content or re.search(rb"[ \t]+$", content, re.MULTILINE):
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong


# --- the words --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_words_for_a_proofreader_are_all_there() -> None:
    words = runpy.run_path(str(ROOT / "scripts" / "words.py"))["words"]()
    for name in Settings.model_fields:
        assert f"| `{name}` |" in words
    for command in COMMANDS:
        assert f"Usage: pthserve {command} " in words
    for text in (
        "EngineFailed: the model returned NaN or infinity; check its weights",
        "log.warning: %s: the API keys cannot be read: %s;",
        "BadParameter: the value is empty.",
        "ValueError: must be 64 hexadecimal digits",
    ):
        assert text in words
