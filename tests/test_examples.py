"""What is in examples/, and in the blocks of docs/python.md, runs and says what it should."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import pthserve

from .linear import LABELS, noise, png
from .packs import tiny_pack

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TESTED = {"README.md", "notebook.py", "fastapi_app.py", "client.py", "client.mjs", "one-machine"}
"""The last by tests/chart/test_one_machine.py."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "packed"
    tiny_pack(folder)
    return folder


@pytest.fixture(scope="module")
def address(packed: Path) -> Iterator[str]:
    """Of a service of the packed model."""
    with (
        pthserve.load(packed) as model,
        pthserve.serve(model, block=False, port=0, log_level="error") as service,
    ):
        yield service.address


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, **environment},
    )


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.name != "__pycache__"} == TESTED


@pytest.mark.slow
def test_the_notebook_runs_with_real_weights(digits: Path) -> None:
    done = run(sys.executable, EXAMPLES / "notebook.py", MODEL=str(digits))
    assert done.returncode == 0, done.stderr
    assert [f"{digit}.png -> {digit}" in done.stdout for digit in range(10)] == [True] * 10
    assert "refused: the data is not a supported image" in done.stdout
    assert "the service says 0" in done.stdout


@pytest.mark.slow
def test_the_notebook_runs_with_a_packed_model(packed: Path) -> None:
    done = run(sys.executable, EXAMPLES / "notebook.py", MODEL=str(packed))
    assert done.returncode == 0, done.stderr
    assert "the service says" in done.stdout


def _client(address: str, name: str, image: Path) -> subprocess.CompletedProcess[str]:
    node = shutil.which("node")
    if name == "client.mjs" and node is None:
        pytest.skip("Node is not installed")
    return run(node if name == "client.mjs" and node else sys.executable, EXAMPLES / name, address, image)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["client.py", "client.mjs"])
def test_a_client_prints_what_the_model_says(address: str, packed: Path, name: str) -> None:
    image = packed / "golden" / "1.png"
    with pthserve.load(packed) as model:
        answer = model(image)
    done = _client(address, name, image)
    assert done.stdout.splitlines() == [
        f"{image}: {answer.labels[index]} {answer.probabilities[index]:.3f}" for index in answer.top(3)
    ], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["client.py", "client.mjs"])
def test_a_client_prints_why_an_image_is_refused(address: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.jpg").write_text("not an image")
    done = _client(address, name, tmp_path / "notes.jpg")
    assert done.returncode == 1
    assert "notes.jpg: 415: the data is not a supported image" in done.stderr


async def test_an_application_has_a_model_in_it_and_the_service_below_it(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL", str(packed))
    app = runpy.run_path(str(EXAMPLES / "fastapi_app.py"))["app"]
    image = png(noise(1))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client,
    ):
        own = await client.post("/sort", files={"image": image})
        assert own.status_code == 200, own.text
        assert own.json()["box"] in LABELS
        refused = await client.post("/sort", files={"image": b"no image"})
        assert (refused.status_code, refused.json()["detail"][:24]) == (
            422,
            "the data is not a supported image"[:24],
        )
        mounted = await client.post("/model/predict", files={"image": image})
        assert mounted.json()["label"] == own.json()["box"]
        assert (await client.get("/model/readyz")).status_code == 200
        assert (await client.get("/model/")).status_code == 200
        assert "pthserve_requests_total" in (await client.get("/model/metrics")).text
        assert "/sort" in (await client.get("/openapi.json")).json()["paths"]


def test_the_blocks_of_the_page_run(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder where `model.pth` and the images are; the port and the log are the test's."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "model.pth").symlink_to(packed)
    for seed, name in enumerate(("cat.jpg", "dog.jpg")):
        (tmp_path / name).write_bytes(png(noise(seed)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PTHSERVE_LOG_LEVEL", "error")
    names: dict[str, Any] = {}
    printed: list[str] = []
    names["print"] = lambda *words: printed.append(" ".join(map(str, words)))
    for block in blocks:
        exec(block, names)
    assert printed[0].split()[0] in LABELS
    assert printed[1].startswith("http://127.0.0.1:")
    assert (names["same"].logits == names["answer"].logits).all()
    assert names["second"].label in LABELS


def test_the_page_lists_the_options_of_loading() -> None:
    row = re.search(r"^\| (`sha256`.*?) \|", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE)
    assert row
    listed = re.findall(r"`(\w+)`", row[1])
    assert sorted([*listed, "tune_budget"]) == sorted(pthserve.ModelOptions.model_fields)
