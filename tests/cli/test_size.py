"""size: a model is measured and planned for, as a table, JSON and values of the chart."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pthserve.sizing.curve import read, write

from ..running import CACHE
from ..sizing.curves import curve
from .called import called

PLANNED = ("--rate", "300", "--p99", "50ms")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Curves of one and of two cores."""
    write([curve(1), curve(2)], tmp_path / "curve.json")
    return tmp_path / "curve.json"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boundaries within 5 %: tests/sizing has those that are precise."""
    monkeypatch.setattr("pthserve.sizing.prediction.PRECISION", 0.05)
    monkeypatch.setattr("pthserve.sizing.queueing.open_loop.__defaults__", (2000, 23))
    monkeypatch.setenv("COLUMNS", "120")


def words(text: str) -> str:
    """The words of an error without the frame around them."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.slow
def test_a_model_is_measured_on_this_machine_and_planned_for(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE))
    monkeypatch.setenv("PTHSERVE_API_KEYS", str(tmp_path / "keys"))  # which is for another service
    arguments = (digits, "--rate", "500", "--p99", "500ms", "--photos", digits / "golden", "--cores", "1")
    saved, values = tmp_path / "curve.json", tmp_path / "values.yaml"
    done = called(
        *("size", *arguments, "--seconds", "0.3", "--tune-budget", "0", "--price", "0.04"),
        *("--json", "--save-curve", saved, "--values", values),
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    (one,) = plan["plans"]
    (measured,) = read(saved, 1)
    assert measured.model == "digits"
    assert measured.memory is not None
    assert 50 * 2**20 < measured.memory < 2**31
    assert measured.pixels == 64 * 64 * 3
    assert 0 < measured.image < measured.lone.latency["p50"]
    assert 0 < one["boundary"] < measured.capacity
    assert one["planned"]["p99"] <= 0.5
    assert one["cost_per_million"] == pytest.approx(0.04 * one["pods"] / (500 * 3600) * 1e6, rel=0.01)
    assert yaml.safe_load(values.read_text()) == plan["values"]
    assert plan["values"]["replicas"] == one["pods"]
    assert "1 core: 32 clients" in done.stderr


def test_a_table_says_what_is_needed_and_what_is_assumed(file: Path) -> None:
    done = called("size", "--curve", file, *PLANNED, "--price", "0.05", "--price-per", "pod")
    assert done.returncode == 0, done.stderr
    shown = [line.split() for line in done.stdout.splitlines()]
    sizes = [line for line in shown if line[:1] in (["1"], ["2"]) and len(line) >= 8]
    assert [line[0] for line in sizes] == ["1", "2"]
    assert sum(line[-1] == "chosen" for line in sizes) == 1
    for word in ("request", "autoscaler's target", "maxUnavailable", "pods lost", "Poisson", "3 nodes"):
        assert word in done.stdout


def test_a_curve_is_planned_for_with_the_cores_that_are_given(file: Path) -> None:
    found = json.loads(called("size", "--curve", file, *PLANNED, "--cores", "2", "--json").stdout)
    assert [plan["curve"]["cores"] for plan in found["plans"]] == [2]
    assert found["values"]["resources"]["limits"]["cpu"] == "2"


def test_whole_cores_are_asked_for_with_equal_requests_and_limits(file: Path) -> None:
    found = json.loads(called("size", "--curve", file, *PLANNED, "--whole-cores", "--json").stdout)
    assert found["values"]["resources"]["requests"] == found["values"]["resources"]["limits"]
    assert any("static policy" in text for text in found["assumed"])


@pytest.mark.slow
def test_more_of_everything_needs_no_fewer_pods(file: Path) -> None:
    def pods(**changes: Any) -> int:
        given = {"rate": 300, "p99": "50ms", "growth": 50, "nodes": 10, **changes}
        options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        found = json.loads(called("size", "--curve", file, *options, "--cores", "1", "--json").stdout)
        return int(found["plans"][0]["pods"])

    fewest = pods(growth=0)
    assert fewest <= pods() <= pods(growth=200) <= pods(growth=200, rate=600)
    assert fewest <= pods(growth=0, nodes=2)
    assert fewest <= pods(growth=0, p99="20ms")
    assert fewest <= pods(growth=0, zones=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing option '--rate'"),
        (("--rate", "300", "--p99", "50"), "must be a duration with its unit, such as 50ms or 0.2s"),
        (("--rate", "300", "--p99", "0ms"), "must be a duration"),
        (("--rate", "0", "--p99", "1s"), "0 is not in the range"),
        (("--rate", "nan", "--p99", "1s"), "'nan' is not a finite number"),
        (("--rate", "inf", "--p99", "1s"), "inf is not in the range"),
        (PLANNED, "Give either MODEL, to measure it on this machine, or --curve"),
        (("--curve", "FILE", "demo", *PLANNED), "Give either MODEL"),
        (("--curve", "FILE", *PLANNED, "--least", "400"), "--least must not exceed --rate"),
        (("--curve", "FILE", *PLANNED, "--most", "200"), "nor --rate --most"),
        (("--curve", "FILE", *PLANNED, "--nodes", "0"), "--nodes"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], message: str, file: Path) -> None:
    done = called("size", *(str(file) if word == "FILE" else word for word in arguments))
    assert done.returncode == 2
    assert message in words(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--curve", "FILE", *PLANNED, "--cores", "3"), "no curve for 3 cores; the file has curves for 1, 2"),
        (("--curve", "FILE", "--rate", "9", "--p99", "5ms"), "that of a lone client is 10.0 ms"),
        (
            ("--curve", "FILE", *PLANNED, "--values", "none/v.yaml"),
            "none/v.yaml: the values cannot be written",
        ),
        (("cats.pth", *PLANNED, "--cores", "4096"), "4096 cores cannot be measured on this machine"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(arguments: tuple[str, ...], message: str, file: Path) -> None:
    done = called("size", *(str(file) if word == "FILE" else word for word in arguments))
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("#")
    done = called("size", "cats.pth", *PLANNED, "--photos", tmp_path)
    assert done.returncode == 1
    assert "there is no image in this folder" in done.stderr


@pytest.mark.slow
def test_a_model_that_cannot_be_served_is_named(tmp_path: Path) -> None:
    done = called("size", tmp_path / "none.pth", *PLANNED, "--cores", "1")
    assert done.returncode == 1
    assert "exit code 3" in done.stderr
    assert "none.pth" in done.stderr
