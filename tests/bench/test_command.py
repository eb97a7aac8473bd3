"""bench: the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Service

pytestmark = pytest.mark.slow


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pthserve", "bench", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"any bytes")
    return path


def test_json_holds_a_round_for_each_load(service: Service, image: Path) -> None:
    done = bench(
        service.url, image, "--clients", "1,2", "--rate", "20", "-s", "0.3", "--warm-up", "0", "--json"
    )
    assert done.returncode == 0, done.stderr
    rounds = json.loads(done.stdout)["rounds"]
    assert [(one["clients"], one["rate"]) for one in rounds] == [(1, None), (2, None), (None, 20.0)]
    for one in rounds:
        assert one["throughput"] > 0
        assert one["latency"]["p50"] <= one["latency"]["p99"] <= one["latency"]["max"]


def test_a_table_and_a_report_are_written(service: Service, image: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    done = bench(service.url, image, "-c", "2", "-s", "0.3", "--warm-up", "0", "--report", page)
    assert done.returncode == 0, done.stderr
    assert "2 clients" in done.stdout
    assert "2 clients" in page.read_text()


def test_a_service_that_is_not_there_is_said_in_one_line(image: Path) -> None:
    done = bench("http://127.0.0.1:1", image)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "127.0.0.1:1 does not respond" in done.stderr


def test_a_service_that_refuses_the_image_is_said_before_anything_is_measured(
    service: Service,
    image: Path,
) -> None:
    service.status = 415
    done = bench(service.url, image)
    assert done.returncode == 1
    assert "responds with 415" in done.stderr
    assert len(service.bodies) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ("--clients", "many"),
        ("--clients", "0"),
        ("--rate", "-1"),
        ("--rate", "inf"),
        ("--seconds", "nan"),
        ("--arrivals", "late"),
        ("--header", "no colon"),
    ],
)
def test_wrong_usage_exits_with_2(image: Path, wrong: tuple[str, str]) -> None:
    assert bench("http://127.0.0.1:1", image, *wrong).returncode == 2
