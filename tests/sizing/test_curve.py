"""A curve is read as it was written, also from figures of bench, and a file that is no curve is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pthserve.bench.load import Point, Round
from pthserve.errors import PthserveError
from pthserve.sizing.curve import CLIENTS, OpenLoop, from_rounds, read, write

from .curves import curve


def bench(*clients: int, **changed: Any) -> dict[str, Any]:
    """What `pthserve bench --json` prints."""
    one = {
        "rate": None,
        "throughput": 80.0,
        "latency": {"p50": 0.012, "p90": 0.013, "p95": 0.014, "p99": 0.015, "max": 0.02},
        "statuses": {"200": 400},
        "failures": {},
    }
    return {"url": "http://x", "images": 1, "rounds": [{**one, "clients": n, **changed} for n in clients]}


def file(folder: Path, content: object) -> Path:
    path = folder / "figures.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_curve_is_read_as_it_was_written(tmp_path: Path) -> None:
    latency = {"p50": 0.01, "p90": 0.02, "p95": 0.03, "p99": 0.04, "max": 0.05}
    open_loops = (OpenLoop(40.0, 10.0, 0.5, latency), OpenLoop(80.0, 10.0, 0.0, latency))
    written = [curve(1), replace(curve(2, memory=None), open_loops=open_loops)]
    write(written, tmp_path / "curve.json")
    assert read(tmp_path / "curve.json", None) == written
    assert read(tmp_path / "curve.json", 2) == written[1:]


def test_figures_of_bench_are_a_curve_of_the_cores_that_are_given(tmp_path: Path) -> None:
    (found,) = read(file(tmp_path, bench(8, 1)), 4)
    assert (found.cores, found.lanes, found.model) == (4, 2, "figures")
    assert [loop.clients for loop in found.loops] == [1, 8]
    assert found.image == pytest.approx(0.75 * 0.012)
    assert len(found.assumed) == 2
    assert read(file(tmp_path, bench(8, 1)), 3)[0].lanes == 1


def test_open_loops_with_even_arrivals_are_left_out(tmp_path: Path) -> None:
    figures = bench(1, 8)
    figures["rounds"].append({**figures["rounds"][0], "clients": None, "rate": 20.0, "arrivals": "even"})
    (found,) = read(file(tmp_path, figures), 1)
    assert len(found.loops) == 2
    assert not found.open_loops


def test_open_loops_with_random_arrivals_are_read_unless_requests_failed(tmp_path: Path) -> None:
    figures = bench(1, 8)
    one = {**figures["rounds"][0], "clients": None, "arrivals": "poisson", "seconds": 10.0, "warm_up": 1.0}
    figures["rounds"] += [
        {**one, "rate": 40.0},
        {**one, "rate": 20.0},
        {**one, "rate": 60.0, "statuses": {"200": 9, "503": 1}},
        {**one, "rate": 70.0, "failures": {"timeout": 1}},
    ]
    (found,) = read(file(tmp_path, figures), 1)
    assert [loop.rate for loop in found.open_loops] == [20.0, 40.0]
    assert (found.open_loops[0].seconds, found.open_loops[0].warm_up) == (10.0, 1.0)


def test_rounds_of_the_load_generator_are_loops() -> None:
    rounds = [Round(Point(clients), 1.0, 2.0, [0.01] * 100) for clients in CLIENTS]
    for one in rounds:
        one.statuses[200] = 100
    loops, open_loops = from_rounds(rounds, "here")
    assert not open_loops
    assert [(loop.clients, loop.throughput) for loop in loops] == [(clients, 50.0) for clients in CLIENTS]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "neither a curve"),
        ([1], "neither a curve"),
        ("null", "neither a curve"),
        ({}, "neither a curve"),
        ({"format": 2, "curves": []}, "the format is 2"),
        ({"format": 1, "curves": []}, "no curve for 2 cores; the file has curves for none"),
        ({"format": 1, "curves": [{}]}, "neither a curve"),
        ({"rounds": [{}]}, "neither a curve"),
        (bench(1, 2), "a closed loop of 1 client, and one of 8 or more"),
        (bench(2, 8), "a closed loop of 1 client, and one of 8 or more"),
        ({"rounds": []}, "a closed loop of 1 client"),
        (bench(1, 8, throughput=0), "with 1 clients, no response came in time; measure longer"),
        (bench(1, 8, throughput="many"), "not a number greater than 0"),
        (bench(1, 8, throughput=-1), "not a number greater than 0"),
        (bench(1, 8, statuses={"200": 3, "503": 2}), "with 1 clients, 2 requests were not answered with 200"),
        (bench(1, 8, failures={"timeout": 1}), "1 requests were not answered"),
    ],
)
def test_a_file_without_a_curve_is_refused(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(PthserveError, match=message):
        read(file(tmp_path, content), 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cores", 0),
        ("cores", 1.5),
        ("lanes", 9),
        ("image", -1),
        ("memory", "much"),
        ("loops", []),
        ("pixels", True),
    ],
)
def test_a_curve_with_an_impossible_value_is_refused(field: str, value: object, tmp_path: Path) -> None:
    write([curve()], tmp_path / "curve.json")
    content = json.loads((tmp_path / "curve.json").read_text())
    content["curves"][0][field] = value
    with pytest.raises(PthserveError, match=r"figures\.json: "):
        read(file(tmp_path, content), None)


def test_figures_of_bench_without_a_number_of_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PthserveError, match="give it as --cores"):
        read(file(tmp_path, bench(1, 8)), None)


def test_a_file_that_is_too_large_is_refused_without_parsing_it(tmp_path: Path) -> None:
    with pytest.raises(PthserveError, match="more than 1048576 bytes"):
        read(file(tmp_path, " " * (2**20 + 1)), 1)


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(PthserveError, match="cannot be read"):
        read(tmp_path / "none", 1)
    with pytest.raises(PthserveError, match="cannot be written"):
        write([curve()], tmp_path / "none" / "curve.json")
