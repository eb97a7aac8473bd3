"""A plan has the fewest pods that keep the latency, with a node or a zone lost and while the load grows."""

import math
from dataclasses import replace

import pytest
import yaml

from pthserve.errors import PthserveError
from pthserve.settings import Settings
from pthserve.sizing import plan as planning
from pthserve.sizing.plan import MIB, Demand, Plan, best, memory_of, plans
from pthserve.sizing.values import text, values

from .curves import curve

DEMAND = Demand(rate=300.0, p99=0.05, least=300.0, most=600.0, growth=0.5, start=15.0, nodes=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boundaries within 5 %, since a plan follows from a boundary whatever its precision."""
    monkeypatch.setattr("pthserve.sizing.prediction.PRECISION", 0.05)
    monkeypatch.setattr("pthserve.sizing.queueing.open_loop.__defaults__", (2000, 23))


def planned(demand: Demand = DEMAND, cores: int = 1) -> Plan:
    (found,) = plans([curve(cores)], demand)
    return found


def keeps(plan: Plan, demand: Demand, rate: float, pods: int) -> bool:
    """Whether so many pods are enough for `rate`."""
    return pods * plan.target_rate >= rate and (pods - demand.lost(pods)) * plan.boundary >= rate


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"growth": 0.0},
        {"growth": 3.0},
        {"nodes": 1},
        {"nodes": 2},
        {"nodes": 1000},
        {"zones": 3},
        {"zones": 2, "nodes": 10},
        {"least": 30.0, "most": 3000.0},
    ],
)
def test_each_number_of_pods_is_the_smallest_that_is_enough(changes: dict[str, float]) -> None:
    demand = replace(DEMAND, **changes)  # type: ignore[arg-type]
    plan = planned(demand)
    for pods, rate in ((plan.pods, demand.rate), (plan.least, demand.least), (plan.most, demand.most)):
        assert keeps(plan, demand, rate, pods)
        assert not any(keeps(plan, demand, rate, fewer) for fewer in range(1, pods))
    assert plan.least <= plan.pods <= plan.most
    assert plan.planned.p99 <= demand.p99
    assert plan.after_loss.p99 <= demand.p99
    assert plan.after_loss.rate == pytest.approx(demand.rate / (plan.pods - plan.lost))


@pytest.mark.parametrize(
    ("nodes", "zones", "pods", "lost"),
    [(3, 1, 9, 3), (3, 1, 10, 4), (50, 1, 10, 1), (1, 1, 10, 0), (9, 2, 9, 5), (1, 3, 9, 3)],
)
def test_a_loss_is_the_share_of_a_node_or_of_a_zone(nodes: int, zones: int, pods: int, lost: int) -> None:
    assert replace(DEMAND, nodes=nodes, zones=zones).lost(pods) == lost


def test_the_autoscaler_has_time_for_a_pod_while_the_rate_grows() -> None:
    alone = replace(DEMAND, nodes=1)
    plan = planned(alone)
    assert plan.growing == planning.REACTION + 15
    assert plan.target_rate * (1 + 0.5 * plan.growing / 60) == pytest.approx(plan.boundary)
    assert planned(replace(alone, growth=0.0)).target_rate == plan.boundary
    measured = planned(replace(DEMAND, start=None))
    assert measured.growing == planning.REACTION + planning.SCHEDULING + 2.0


@pytest.mark.parametrize(("nodes", "zones"), [(2, 1), (3, 1), (50, 1), (9, 2), (1, 3)])
def test_the_pods_that_the_autoscaler_wants_hold_after_a_loss(nodes: int, zones: int) -> None:
    """It wants the fewest that have at most the target each, from the planned rate on."""
    demand = replace(DEMAND, growth=0.0, nodes=nodes, zones=zones, most=6000.0)
    plan = planned(demand)
    for pods in range(plan.pods, plan.most + 1):
        assert (pods - demand.lost(pods)) * plan.boundary >= pods * plan.target_rate * (1 - 1e-9)


def test_the_targets_are_those_of_the_target_rate_less_the_tolerance() -> None:
    plan = planned()
    load = plan.target_rate * 0.01  # of one core
    assert plan.targets["cpu"] == pytest.approx(100 * load / 1.1, abs=3)
    assert 0 < plan.targets["saturation"] < load
    assert plan.targets["inflight"] > 0


def test_no_target_is_so_high_that_the_metric_cannot_exceed_it() -> None:
    plan = planned(replace(DEMAND, growth=0.0, p99=5.0))
    assert plan.boundary > 90
    assert plan.targets["cpu"] <= 90
    assert plan.targets["saturation"] <= 0.9


def test_the_cheapest_size_of_pod_is_chosen_and_all_are_there() -> None:
    found = plans([curve(1), curve(2)], DEMAND)
    assert [plan.curve.cores for plan in found] == [1, 2]
    assert best(found).cores == min(plan.cores for plan in found)
    tight = replace(DEMAND, p99=0.0101)
    slow = replace(curve(1), loops=[replace(loop, throughput=loop.throughput / 2) for loop in curve(1).loops])
    assert [plan.curve.cores for plan in plans([slow, curve(2)], replace(tight, p99=0.03))][-1] == 2


def test_a_latency_below_that_of_a_lone_client_is_refused() -> None:
    with pytest.raises(PthserveError, match=r"of a lone client is 10.0 ms on 1 cores"):
        plans([curve(1)], replace(DEMAND, p99=0.009))


def test_the_cost_follows_from_the_price_of_a_core_or_a_pod() -> None:
    plan = replace(planned(cores=2), pods=10)
    assert plan.cost(0.05, "core", 300) == pytest.approx(20 * 0.05 / (300 * 3600) * 1e6)
    assert plan.cost(0.05, "pod", 300) == pytest.approx(plan.cost(0.05, "core", 300) / 2)


def test_the_memory_is_the_sum_of_what_the_settings_allow() -> None:
    request, limit = memory_of(curve())
    assert request == 384 * MIB  # 300 and a fifth, in steps of 64
    defaults = Settings()
    bounds = (300 + 100) * MIB + 18 * defaults.max_body + defaults.decode_memory + 256 * 224 * 224 * 3
    assert bounds <= limit < bounds + 256 * MIB
    (unmeasured,) = plans([curve(memory=None)], DEMAND)
    assert unmeasured.memory is None


def test_for_whole_cores_the_requests_are_the_limits() -> None:
    demand = replace(DEMAND, whole_cores=True)
    (plan,) = plans([curve()], demand)
    resources = values(plan, demand, "cpu")["resources"]
    assert resources["requests"] == resources["limits"]
    assert plan.memory is not None
    assert plan.memory[1] == memory_of(curve())[1]
    with pytest.raises(PthserveError, match=r"--whole-cores.*how much memory"):
        plans([curve(memory=None)], demand)


def test_the_values_have_the_plan_and_the_service_reads_their_settings() -> None:
    plan = planned()
    found = values(plan, DEMAND, "saturation")
    assert found == yaml.safe_load(text(plan, DEMAND, "saturation"))
    assert found["replicas"] == found["autoscaling"]["minReplicas"] == plan.pods
    assert found["autoscaling"]["target"] == {"saturation": plan.targets["saturation"]}
    assert found["podDisruptionBudget"]["maxUnavailable"] == plan.lost
    assert found["resources"]["limits"]["cpu"] == found["resources"]["requests"]["cpu"] == "1"
    settings = Settings(
        planned_rate=found["settings"]["plannedRate"], planned_latency=found["settings"]["plannedLatency"]
    )
    assert settings.planned_rate is not None
    assert math.isclose(settings.planned_rate, plan.boundary, abs_tol=0.01)


def test_unmeasured_memory_is_left_to_the_chart() -> None:
    (plan,) = plans([curve(memory=None)], DEMAND)
    assert "memory" not in values(plan, DEMAND, "cpu")["resources"]["limits"]
