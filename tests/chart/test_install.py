"""docs/install.md and the examples' heads: every helm command that they show is one the chart takes."""

import re
import shlex
from pathlib import Path

import pytest

from .conftest import APIS, KUBERNETES, ROOT, Helm, Rendered

PAGES = [
    ROOT / "docs" / "install.md",
    ROOT / "docs" / "rollouts.md",
    ROOT / "docs" / "scale-to-zero.md",
    *sorted((ROOT / "k8s" / "examples").glob("*.yaml")),
]
INSTALLS = [
    pytest.param(command, id=f"{page.name}-{number}")
    for page in PAGES
    for number, command in enumerate(
        re.findall(r"^(?:\$ |#   )(helm (?:install|upgrade) .+)$", page.read_text(), re.MULTILINE)
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("command", INSTALLS)
def test_a_shown_helm_command_renders(command: str, helm: Helm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    digest = "0" * 64  # of the file that a command takes the SHA-256 of
    shown = shlex.split(re.sub(r"\$\(sha256sum [^)]*\)", digest, command))
    release, chart, *flags = shown[2:]

    apis = [f"--api-versions={api}" for api in APIS]
    found = helm.run("template", release, chart, "--kube-version", KUBERNETES, *apis, *flags)

    assert found.returncode == 0, found.stderr
    assert Path(chart, "Chart.yaml").exists()
    (workload,) = Rendered(found.stdout).workloads
    assert workload["metadata"]["name"] == "cats-pthserve"
