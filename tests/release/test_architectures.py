"""The image slim for another architecture: built, and started, by emulation."""

import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ..shared import until
from ..sources.servers import running
from .conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="arm64 is the other architecture of x86-64"),
]

NAME = "localhost/release-test:arm64"
PROCESSOR = "neoverse-n1"
"""Without the vector extension SVE: where qemu emulates that, OpenVINO's answers are wrong, and refused."""


def run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def container(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str | Path]]:
    """The start of a command that runs in a container of the image, with the packed digits in `/model`."""
    packed = tmp_path_factory.mktemp("arm64") / "digits"
    run("scripts/image", "slim", NAME, "--platform", "linux/arm64")
    run(ROOT / ".venv/bin/pthserve", "pack", digits, "-o", packed)
    packed.chmod(0o755)
    name = run("buildah", "from", "--pull-never", "--platform", "linux/arm64", NAME).strip()
    try:
        options = ("--network", "host", "-v", f"{packed}:/model:ro", "-e", f"QEMU_CPU={PROCESSOR}")
        yield [ROOT / "scripts/emulated", "arm64", "buildah", "run", *options, name, "--"]
    finally:
        run("buildah", "rm", name)
        run("buildah", "rmi", NAME)


def test_its_programs_are_of_that_architecture(container: list[str | Path]) -> None:
    assert run(*container, "python3", "-c", "import platform; print(platform.machine())") == "aarch64\n"


def test_the_golden_images_of_the_digits_agree(container: list[str | Path]) -> None:
    """Which were packed on this machine."""
    run(*container, "pthserve", "golden", "/model")


def test_it_serves_the_digits(container: list[str | Path], digits: Path, tmp_path: Path) -> None:
    command = [*container, "pthserve", "serve", "/model", "--host", "127.0.0.1", "--port", "0"]
    command += ["--precision", "fp32", "--tune-budget", "0"]
    with (
        running(command, r"listening on (http://\S+)", tmp_path / "log") as found,
        httpx.Client(base_url=found[1], timeout=120) as client,
    ):
        until(
            lambda: client.get("/readyz").status_code == 200, "readiness", 600
        )  # emulated, a minute or more
        for image in sorted((digits / "golden").iterdir()):
            answer = client.post("/predict", files={"image": image.read_bytes()})
            assert answer.json()["label"] == image.stem
