"""From a clone to an answer: what the pages and the chart's notes say is what works."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from kubernetes import client

from .load import IMAGE
from .release import ROOT, SMALL, Release

PAGE = (ROOT / "docs/install.md").read_text()


@pytest.fixture
def shell(kubeconfig: Path, namespace: str, tmp_path: Path) -> Callable[..., str]:
    """shell(commands): what they print, run from the clone with `namespace` as kubectl's and helm's own.

    What they leave running is ended; port 8000 of this machine is another that is free.
    """
    settings = yaml.safe_load(kubeconfig.read_text())
    for context in settings["contexts"]:
        context["context"]["namespace"] = namespace
    own = tmp_path / "kubeconfig"
    own.write_text(yaml.safe_dump(settings))
    own.chmod(0o600)

    def run(commands: str, folder: Path = ROOT) -> str:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        moved = re.sub(r"(port-forward .*?) ?8000(:\d+) &", r"\1 8000\2 >/dev/null &", commands)
        script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
        done = subprocess.run(
            ["bash", "-c", script + re.sub(r"\b8000\b", str(port), moved)],
            cwd=folder,
            env={**os.environ, "KUBECONFIG": str(own)},
            capture_output=True,
            text=True,
            timeout=3600,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


def blocks(page: str, heading: str) -> list[str]:
    """The commands that a page shows below a heading, block by block."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [
        "\n".join(line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ "))
        for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    ]


@pytest.mark.long
def test_the_page_leads_from_a_clone_to_the_readmes_answer_and_out_again(
    cluster: Any, image: Callable[[str], str], shell: Callable[..., str], release: Release
) -> None:
    build, install, ask, test = blocks(PAGE, "The demo")
    if cluster.local:
        shell(build)
    else:
        image("full")

    shell(install)
    answer = json.loads(shell(ask))
    tested = shell(test)
    (out,) = blocks(PAGE, "Uninstall")
    shell(out)

    said = json.loads(re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0])
    assert (answer["class_index"], answer["label"]) == (said["class_index"], said["label"])
    assert [best["label"] for best in answer["top"]] == [best["label"] for best in said["top"]]
    assert answer["top"][0]["probability"] == pytest.approx(said["top"][0]["probability"], abs=0.02)
    assert len(answer["probabilities"]) == 1000
    assert re.search(r"Phase:\s+Succeeded", tested)
    assert not release.pods


@pytest.mark.parametrize("keys", [False, True], ids=["open", "with keys"])
def test_what_the_notes_print_works(
    image: Callable[[str], str],
    api: client.ApiClient,
    release: Release,
    shell: Callable[..., str],
    tmp_path: Path,
    keys: bool,
) -> None:
    image("slim")
    if keys:
        secret = {"metadata": {"name": "cats-keys"}, "stringData": {"keys": "first-key\nsecond-key\n"}}
        client.CoreV1Api(api).create_namespaced_secret(release.namespace, secret)

    said = release.upgrade(
        SMALL,
        {"image": {"variant": "slim"}, "apiKeys": {"secret": "cats-keys" if keys else ""}},
        wait=False,
    )
    commands = re.findall(r"^  (\S.+)$", said.split("NOTES:\n")[1], re.MULTILINE)
    printed = shell("\n".join(commands), tmp_path)

    (answer,) = (
        json.loads(line) for line in re.findall(r"^\{.*?\}$|^\{.*\}(?=NAME:)", printed, re.MULTILINE)
    )
    assert answer["class_index"] in {281, 282, 285}  # tabby, tiger cat, Egyptian cat
    assert re.search(r"Phase:\s+Succeeded", printed)


def test_without_a_key_nothing_is_answered(
    image: Callable[[str], str],
    api: client.ApiClient,
    release: Release,
    port_forward: Callable[..., Any],
) -> None:
    image("slim")
    secret = {"metadata": {"name": "cats-keys"}, "stringData": {"keys": "first-key\nsecond-key\n"}}
    client.CoreV1Api(api).create_namespaced_secret(release.namespace, secret)
    release.upgrade(SMALL, {"image": {"variant": "slim"}, "apiKeys": {"secret": "cats-keys"}})

    with port_forward(release.namespace, f"service/{release.fullname}", 80) as url:
        picture = {"image": IMAGE.read_bytes()}
        codes = {
            key: httpx.post(f"{url}/predict", files=picture, headers={"Authorization": f"Bearer {key}"})
            for key in ("none", "first-key", "second-key")
        }
    assert {key: reply.status_code for key, reply in codes.items()} == {
        "none": 401,
        "first-key": 200,
        "second-key": 200,
    }
