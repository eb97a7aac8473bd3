"""pack: a model becomes a folder, and the folder a service, where PyTorch cannot be imported."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from ..conftest import ROOT, serving
from ..linear import LABELS, noise, png
from ..packs import tiny_pack
from ..shared import metric, until
from ..test_docs import commands
from ..zoo import CODE, tiny_folder

pytestmark = pytest.mark.slow

ABSENT = ("torch", "torchvision", "nncf", "safetensors")
COFFEE = "weights/imagenet/golden/coffee.jpg"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pthserve", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        **{"cwd": ROOT, **options},  # type: ignore[call-overload]
    )


@pytest.fixture
def _without_torch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started find none of ABSENT, and no packed model in the cache."""
    folder = tmp_path_factory.mktemp("without")
    for name in ABSENT:
        (folder / f"{name}.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"
        )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


@pytest.fixture(scope="module")
def digits_pack(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "packed"
    done = run("pack", digits, "-o", folder)
    assert done.returncode == 0, done.stderr
    assert f"{folder}: packed digits, version 1, resnet18, 10 classes" in done.stdout
    return folder


def test_another_process_makes_the_same_bytes(digits: Path, digits_pack: Path, tmp_path: Path) -> None:
    assert run("pack", digits, "-o", tmp_path / "again").returncode == 0
    assert subprocess.run(["diff", "-r", digits_pack, tmp_path / "again"]).returncode == 0


@pytest.mark.usefixtures("_without_torch")
def test_it_is_served_without_torch_and_answers_as_the_unpacked_model_does(
    digits: Path, digits_pack: Path, served_digits: str, tmp_path: Path
) -> None:
    with serving(digits_pack, tmp_path / "log") as address:
        info, origin = (httpx.get(f"{one}/info").json() for one in (address, served_digits))
        for field in ("name", "version", "architecture", "parameters", "labels", "digest", "preprocess"):
            assert info[field] == origin[field]
        assert info["engine"] == "openvino"
        assert info["golden"] == {"images": origin["golden"]["images"], "result": "agreed"}
        assert info["plan"]["trials"]
        for image in sorted((digits / "golden").iterdir()):
            files = {"image": image.read_bytes()}
            here, there = (
                httpx.post(f"{one}/predict", files=files).json() for one in (address, served_digits)
            )
            assert here["class_index"] == there["class_index"] == int(image.stem)
            assert here["probabilities"] == pytest.approx(there["probabilities"], abs=0.02)
        routes = [httpx.get(f"{one}/openapi.json").json()["paths"].keys() for one in (address, served_digits)]
        assert routes[0] == routes[1]
        names = [
            set(re.findall(r"^# TYPE (\S+)", httpx.get(f"{one}/metrics").text, re.MULTILINE))
            for one in (address, served_digits)
        ]
        assert names[0] == names[1]
        explained = httpx.post(
            f"{address}/explain", files={"image": (digits / "golden" / "3.png").read_bytes()}, timeout=60
        )
        assert explained.headers["content-type"] == "image/png"


def test_a_service_of_a_pack_imports_nothing_that_it_does_not_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pack(tmp_path / "packed")
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # each import is a line of standard error
    log = tmp_path / "log"
    with serving(tmp_path / "packed", log) as address:
        assert httpx.post(f"{address}/predict", files={"image": png(noise(1))}).status_code == 200
        for path in ("/", "/info", "/metrics", "/v2/models/zoo"):
            assert httpx.get(f"{address}{path}").status_code == 200
    imported = set(re.findall(r"^import time:.*\|\s+(\S+)$", log.read_text(), re.MULTILINE))
    assert {"openvino", "numpy", "starlette.routing", "PIL.Image"} <= imported
    unneeded = {*ABSENT, "httpx", "yaml", "rich.progress", "grpc", "opentelemetry.sdk"}
    assert not imported & unneeded


@pytest.mark.usefixtures("_without_torch")
def test_one_pack_takes_the_place_of_another_only_if_it_is_whole_and_proves_itself(tmp_path: Path) -> None:
    current = tmp_path / "current"

    def put(seed: int, **how: int) -> None:
        shutil.rmtree(current, ignore_errors=True)
        tiny_pack(current, seed, **how)

    put(0)
    with serving(current, tmp_path / "log") as address, httpx.Client(base_url=address) as client:
        load = "/v2/repository/models/zoo/load"

        def answer() -> list[float]:
            told: list[float] = client.post("/predict", files={"image": png(noise(1))}).json()[
                "probabilities"
            ]
            return told

        first = answer()
        put(1)
        assert client.post(load, json={}).status_code == 200
        assert client.get("/info").json()["version"] == "1"
        assert answer() != first
        put(2, off=1)  # its golden images disagree
        refused = client.post(load, json={})
        assert (refused.status_code, "golden" in refused.json()["error"]) == (409, True)
        put(3)
        with (current / "model.bin").open("ab") as weights:
            weights.write(b"\0")
        refused = client.post(load, json={})
        assert (refused.status_code, "model.bin was changed" in refused.json()["error"]) == (409, True)
        assert client.get("/info").json()["version"] == "1"
        counted = {
            result: metric(client, f'pthserve_model_loads_total{{result="{result}"}}')
            for result in ("ok", "golden", "failed")
        }
        assert counted == {"ok": 2, "golden": 1, "failed": 1}


@pytest.mark.usefixtures("_without_torch")
def test_a_pack_whose_golden_images_disagree_is_not_served(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "packed", off=1)
    done = run("serve", tmp_path / "packed", "--port", "0")
    assert (done.returncode, "the golden images disagree" in done.stderr) == (4, True)


@pytest.mark.usefixtures("_without_torch")
def test_what_needs_torch_says_so_in_a_line(digits: Path, tmp_path: Path) -> None:
    weights = digits / "digits.pth"
    image = digits / "golden" / "3.png"
    for arguments in (
        ("pack", weights, "-o", tmp_path / "packed"),
        ("serve", weights, "--port", "0"),
        ("tune", weights),
        ("predict", weights, image),
        ("golden", weights),
        ("inspect", weights),
    ):
        done = run(*arguments)
        assert done.returncode == 3
        (said,) = [line for line in done.stderr.splitlines() if not re.search(r"^\S+ info ", line)]
        assert "needs PyTorch, which is not installed; install pthserve[build]" in said
    assert not (tmp_path / "packed").exists()


@pytest.mark.usefixtures("_without_torch")
def test_what_does_not_need_torch_does_without(tmp_path: Path) -> None:
    pack = tmp_path / "packed"
    model = tiny_pack(pack)
    found = json.loads(run("inspect", pack, "--json").stdout)
    assert (found["format"], found["sha256"], found["labels"]) == ("packed", model.digest, list(LABELS))
    assert "no byte of it changed" in run("inspect", pack).stdout
    assert "golden images pass" in run("golden", pack).stdout
    told = json.loads(run("predict", pack, pack / "golden" / "1.png", "--json").stdout)
    assert told[0]["class_index"] == model.golden[0].class_index
    assert "chosen" in run("tune", pack, "--tune-budget", "0.1").stdout


def test_a_changed_byte_is_told_by_inspect(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "packed")
    manifest = tmp_path / "packed" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("zoo", "zop"))
    done = run("inspect", tmp_path / "packed")
    assert (done.returncode, done.stdout) == (3, "")
    assert "manifest.json was changed" in done.stderr


def test_a_folder_that_is_no_pack_is_no_output(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = run("pack", digits, "-o", tmp_path)
    assert (done.returncode, "choose another folder" in done.stderr) == (3, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_commands_of_the_page_work(tmp_path: Path) -> None:
    """One after the other, as somebody reads them; a service is asked whether it is ready, and ended."""
    for folder in ("model", "photos"):
        (tmp_path / folder).mkdir()
    tiny_folder(tmp_path / "model")
    for number in range(20):
        Image.fromarray(noise(number)).save(tmp_path / "photos" / f"{number}.png")
    page = commands((ROOT / "docs" / "packing.md").read_text())
    assert {line.split()[1] for line in page} == {"pack", "inspect", "serve", "tune"}
    # int8 of a network as small as this one is too far off for the guard.
    more = {
        "PYTHONPATH": str(ROOT),
        "PTHSERVE_TOLERANCE": "1",
        "PTHSERVE_TUNE_BUDGET": "2",
        "PTHSERVE_ALLOW_CODE": CODE,
    }
    environment = {**os.environ, **more}
    for line in page:
        arguments = shlex.split(line)[1:]
        if arguments[0] != "serve":
            done = run(*arguments, cwd=tmp_path, env=environment)
            assert done.returncode == 0, f"{line}: {done.stderr}"
            continue
        command = [sys.executable, "-m", "pthserve", *arguments, "--port", "0", "--drain-seconds", "0"]
        log = tmp_path / "log"
        with log.open("w") as written:
            service = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=written)
        try:
            until(lambda: "ready" in log.read_text(), line)  # noqa: B023
            service.send_signal(signal.SIGTERM)
            assert service.wait(30) == 0
        finally:
            service.kill()
            service.wait()
