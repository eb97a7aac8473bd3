"""The simulation of many nodes: its arithmetic, and all its scenarios on a few nodes."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from benchmarks.nodes import page
from benchmarks.nodes.__main__ import main
from benchmarks.nodes.cluster import GPU, Pod, by_zone, nodes, skew
from benchmarks.nodes.day import chart_behavior, faster
from benchmarks.nodes.metrics import Saturation
from benchmarks.nodes.traffic import FACTOR, Day, Expected, Sample, Surge, breaches, expected, typical

from pthserve.sizing.curve import read, write
from pthserve.sizing.plan import Demand, Plan
from pthserve.sizing.prediction import Load, Predictor

from ..conftest import ROOT
from ..sizing.curves import curve

DEMAND = Demand(rate=1000.0, p99=0.05, least=200.0, most=2000.0, zones=3)
DOWN = 300.0


LOAD = Load(rate=30.0, p50=0.01, p99=0.02, saturation=0.3, inflight=0.5, cpu=0.3)
PLAN = Plan(
    curve=curve(1),
    boundary=46.0,
    target_rate=30.0,
    pods=34,
    least=7,
    most=67,
    lost=12,
    growing=57.0,
    targets={"cpu": 50, "saturation": 0.3, "inflight": 0.5},
    planned=LOAD,
    after_loss=LOAD,
    loads=[],
    memory=None,
)
"""Pods that hold 46 requests per second each, and get 30 at most."""


def calm(rate: float, outage: tuple[float, float] = (0.0, 0.0)) -> Day:
    """A day of an hour with the same rate all the time."""
    return Day(3600.0, rate, rate, (), 0.0, outage)


# Traffic.


def test_a_surge_rises_holds_and_falls() -> None:
    surge = Surge(begin=100.0, multiple=3.0, rise=30.0, hold=60.0)
    assert [surge.factor(at) for at in (100, 115, 130, 190, 265, 340, 400)] == [1, 2, 3, 3, 2, 1, 1]


def test_a_day_has_its_trough_at_midnight_and_its_peak_in_the_middle() -> None:
    day = typical(14_400.0, DEMAND)
    assert day.rate(0) == pytest.approx(DEMAND.least)
    assert day.rate(7_200) == pytest.approx(DEMAND.rate)
    assert [day.hour(at) for at in (0, 7_200, 14_390)] == ["00:00", "12:00", "23:59"]


def test_the_allowed_surge_grows_no_faster_than_the_plan_allows_and_the_other_does() -> None:
    day = typical(14_400.0, DEMAND)
    allowed, sudden = day.surges
    for surge, holds in ((allowed, True), (sudden, False)):
        growth = [
            day.rate(surge.begin + at) / day.rate(surge.begin + at - PLAN.growing)
            for at in range(round(surge.rise + PLAN.growing))
        ]
        assert (max(growth) <= 1 + DEMAND.growth * PLAN.growing / 60) == holds


# What the plan expects.


def test_a_constant_rate_needs_the_planned_pods_and_has_no_breach() -> None:
    found = expected(calm(DEMAND.rate), DEMAND, PLAN, DOWN)
    assert not [one for one in found[round(2 * PLAN.growing) :] if one.breach]
    assert found[-1].pods == pytest.approx(DEMAND.rate / PLAN.target_rate, abs=1)


def test_the_planned_pods_hold_while_a_zone_is_lost() -> None:
    found = expected(calm(DEMAND.rate, (1800.0, 2400.0)), DEMAND, PLAN, DOWN)
    assert not [one for one in found if 1800 <= one.at < 2400 and one.breach]


def test_a_lost_zone_is_a_breach_where_the_load_is_at_the_limit_of_its_pods() -> None:
    most = PLAN.most * PLAN.boundary
    found = expected(calm(most, (3000.0, 3300.0)), DEMAND, PLAN, DOWN)
    assert all(one.breach for one in found if 3000 <= one.at < 3300)


def test_growth_that_is_allowed_is_no_breach_and_sudden_growth_is() -> None:
    day = typical(14_400.0, DEMAND)
    found = expected(day, DEMAND, PLAN, DOWN)
    allowed, sudden = day.surges
    begin = [one.at for one in found if one.breach]
    assert begin
    assert min(begin) >= sudden.begin > allowed.begin
    assert max(begin) < sudden.begin + sudden.rise + sudden.hold


def test_pods_are_kept_while_the_load_dips_for_less_than_the_stabilization() -> None:
    dip = Surge(begin=1800.0, multiple=0.5, rise=10.0, hold=60.0)
    found = expected(Day(3600.0, 1000.0, 1000.0, (dip,), 0.0, (0.0, 0.0)), DEMAND, PLAN, DOWN)
    late = [one.pods for one in found if one.at > 600]
    assert skew(late) == 0


# What is compared.


def test_breaches_are_joined_and_say_how_much_of_them_was_predicted() -> None:
    prediction = [Expected(at, 10, 2 <= at < 4) for at in map(float, range(10))]
    rates = [5, 5, 20, 20, 20, 20, 5, 5, 20, 5]
    samples = [Sample(at, rate, 10) for at, rate in enumerate(rates)]
    first, second = breaches(samples, 1.0, prediction)
    assert (first.begin, first.end, first.predicted) == (2, 6, 0.5)
    assert (second.begin, second.end, second.predicted) == (8, 9, 0)


def test_the_times_of_the_chart_s_behaviour_are_divided_exactly() -> None:
    behavior = chart_behavior()
    result = faster(behavior, FACTOR)
    for direction, rules in behavior.items():
        assert result[direction]["stabilizationWindowSeconds"] * FACTOR == rules["stabilizationWindowSeconds"]
        for policy, other in zip(rules["policies"], result[direction]["policies"], strict=True):
            assert other == {**policy, "periodSeconds": policy["periodSeconds"] // FACTOR}
    with pytest.raises(ValueError, match="not a multiple of 7"):
        faster(behavior, 7)


@pytest.mark.slow
def test_the_saturation_rises_with_the_rate_up_to_one() -> None:
    saturation = Saturation(Predictor(curve(1)))
    values = [saturation(rate) for rate in range(0, 120, 10)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0, 1)
    assert saturation(50.0) == pytest.approx(Predictor(curve(1)).at(50.0).saturation, abs=0.02)


# The cluster.


def test_nodes_are_even_over_zones_and_gpu_nodes_have_a_taint_and_gpus() -> None:
    made = nodes(99, 0.1)
    names = [node["metadata"]["name"] for node in made]
    assert len(set(names)) == 99
    zones = [node["metadata"]["labels"]["topology.kubernetes.io/zone"] for node in made]
    assert {zone: zones.count(zone) for zone in "abc"} == dict.fromkeys("abc", 33)
    for node in made:
        gpu = node["metadata"]["labels"]["pool"] == "gpu"
        assert (GPU in node["status"]["allocatable"]) == gpu == bool(node["spec"].get("taints"))


def test_a_pod_that_ends_gets_no_requests() -> None:
    found = {
        "metadata": {"name": "x", "labels": {}},
        "spec": {"nodeName": "b-0001"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    pod = Pod.of(found)
    assert (pod.serving, by_zone([pod])) == (True, {"a": 0, "b": 1, "c": 0})
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert not Pod.of(found).serving


def test_the_simulated_kubelet_starts_and_ends_pods_as_their_annotations_say() -> None:
    stages = yaml.safe_load_all((ROOT / "benchmarks" / "nodes" / "stages.yaml").read_text())
    delays = {one["metadata"]["name"]: one["spec"].get("delay", {}).get("durationFrom") for one in stages}
    assert "simulation/start" in delays["pod-ready"]["expressionFrom"]
    assert "simulation/end" in delays["pod-delete"]["expressionFrom"]


def test_the_command_of_the_documentation_has_these_options_and_a_measured_curve() -> None:
    (line,) = re.findall(
        r"^    python -m benchmarks\.nodes (--.*?)(?:  +#.*)?$",
        (ROOT / "docs" / "performance.md").read_text(),
        re.MULTILINE,
    )
    context = main.make_context("nodes", shlex.split(line))
    assert context.params["nodes"] == 1000
    (measured,) = read(context.params["curve"], 1)
    assert measured.capacity > measured.lone.throughput


def test_a_table_takes_its_place_in_the_page_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    target.write_text(f"before\n{page.BEGIN}old\n{page.END}\nafter\n")
    page.write({"removed": {"nodes": 60, "replaced_seconds": 70.5}}, target)
    text = target.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{page.END}\nafter\n")
    assert "| 60 | ... all are, where the node objects are removed | 70.5 s |" in text
    assert "old" not in text
    target.write_text("nothing\n")
    with pytest.raises(ValueError, match="has no line"):
        page.write({}, target)


@pytest.mark.long
@pytest.mark.slow
def test_all_scenarios_run_on_a_few_nodes(tmp_path: Path) -> None:
    write([curve(1)], tmp_path / "curve.json")
    command = [sys.executable, "-m", "benchmarks.nodes", "--nodes", "60", "--pods", "30", "--rate", "2000"]
    options = ["--minutes", "2", "--p99", "0.05", "--curve", str(tmp_path / "curve.json")]
    done = subprocess.run(
        [*command, *options, "--json", str(tmp_path / "run.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["upgrade"]["upgrade"]["least_serving"] == 30, "an upgrade takes no pod away"
    assert found["drain"]["least_serving"] >= 27, "a drain takes a tenth away at most"
    assert found["outage"]["tolerated_seconds"] == {"not-ready": 30, "unreachable": 30}
    assert found["gpus"]["pods_outside_the_pool"] == found["gpus"]["pods_without_gpu_in_the_pool"] == 0
    assert "Insufficient nvidia.com/gpu" in found["gpus"]["more_pods_than_gpus"]["why_10_wait"]
    assert found["priority"]["preempted"] <= found["priority"]["pods"]
    assert found["quota"]["deployment"]["ReplicaFailure"][1] == "FailedCreate"
    assert found["day"]["breach_seconds_predicted_by_the_plan"] > 0
