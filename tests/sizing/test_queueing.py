"""The simulation of a pod has the latencies of queues whose formulas are known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pthserve.sizing.queueing import Pod, closed_loop, open_loop, replayed

SECONDS = 0.01
"""The mean service time."""
EXPONENTIAL = [-SECONDS * math.log(1 - share) for share in np.linspace(0, 0.9999, 10_000)]
REQUESTS = 20_000


def mean(values: "list[float]") -> float:
    return float(np.mean(values))


def crommelin(rate: float, seconds: float, wait: float) -> float:
    """P(wait <= `wait`) of M/D/1: C. D. Crommelin, Post Office Electrical Engineers' Journal 25, 1932."""
    load = rate * seconds
    terms = (
        (rate * (k * seconds - wait)) ** k / math.factorial(k) * math.exp(-rate * (k * seconds - wait))
        for k in range(int(wait / seconds) + 1)
    )
    return (1 - load) * sum(terms)


def test_exponential_work_on_one_core_is_an_m_m_1_queue() -> None:
    """The time in the system is exponential with mean 1 / (mu - lambda)."""
    rate = 50.0
    outcome = open_loop(Pod(1, 1, 1, EXPONENTIAL, 0.0), rate, REQUESTS)
    expected = 1 / (1 / SECONDS - rate)
    assert mean(list(outcome.latencies)) == pytest.approx(expected, rel=0.05)
    assert outcome.quantile(0.5) == pytest.approx(expected * math.log(2), rel=0.05)
    assert outcome.quantile(0.99) == pytest.approx(expected * math.log(100), rel=0.1)


@pytest.mark.parametrize("load", [0.3, 0.6])
@pytest.mark.parametrize("where", ["work", "pass"])
def test_constant_work_on_one_core_is_an_m_d_1_queue(load: float, where: str) -> None:
    """The mean wait is that of Pollaczek and Khinchine, its distribution that of Crommelin."""
    rate = load / SECONDS
    pod = Pod(1, 1, 1, [SECONDS], 0.0) if where == "work" else Pod(1, 1, 1, [0.0], SECONDS)
    outcome = open_loop(pod, rate, REQUESTS)
    waits = np.asarray(outcome.latencies) - SECONDS
    assert waits.mean() == pytest.approx(load * SECONDS / (2 * (1 - load)), rel=0.08)
    for wait in (0.0, 0.5 * SECONDS, SECONDS, 2.5 * SECONDS, 5 * SECONDS):
        assert (waits <= wait + 1e-9).mean() == pytest.approx(crommelin(rate, SECONDS, wait), abs=0.015)


def test_exponential_work_on_two_cores_is_an_m_m_2_queue() -> None:
    """The mean wait is that of Erlang's formula C."""
    rate, offered = 120.0, 120.0 * SECONDS
    busy = offered**2 / 2 / (1 - offered / 2)
    waits = busy / (1 + offered + busy)
    outcome = open_loop(Pod(2, 1, 1, EXPONENTIAL, 0.0), rate, REQUESTS)
    assert mean(list(outcome.latencies)) == pytest.approx(SECONDS + waits / (2 / SECONDS - rate), rel=0.05)


def test_a_single_client_waits_for_its_own_work_and_pass() -> None:
    outcome = closed_loop(Pod(2, 2, 8, [0.003], 0.007), 1)
    assert outcome.latencies == pytest.approx([0.01] * len(outcome.latencies))
    assert outcome.throughput == pytest.approx(100)
    assert outcome.inflight == pytest.approx(1)


@pytest.mark.parametrize("clients", [8, 32])
@pytest.mark.parametrize(("cores", "lanes"), [(1, 1), (2, 2), (4, 2), (3, 1)])
def test_many_clients_keep_all_cores_busy(cores: int, lanes: int, clients: int) -> None:
    """A request needs 3 ms of a core and then all cores for 2 ms."""
    outcome = closed_loop(Pod(cores, lanes, 8, [0.003], 0.002), clients)
    most = cores / (0.003 + cores * 0.002)
    assert 0.85 * most <= outcome.throughput <= 1.01 * most
    assert outcome.cpu == pytest.approx(outcome.throughput / most, rel=0.02)


def test_a_large_batch_of_one_lane_waits_less_often_for_a_pass_but_longer() -> None:
    """With batches, all requests of a pass are answered at its end."""
    single, batched = (open_loop(Pod(1, 1, most, [0.0], SECONDS), 70, REQUESTS) for most in (1, 32))
    assert batched.quantile(0.5) > single.quantile(0.5)
    assert single.throughput == pytest.approx(batched.throughput, rel=0.01)


def test_the_pace_scales_the_time_of_all_work() -> None:
    pod = Pod(2, 2, 4, [0.003], 0.002)
    slow = replace(pod, pace=(0.5,))
    for clients in (1, 4):
        assert closed_loop(slow, clients).throughput == pytest.approx(
            0.5 * closed_loop(pod, clients).throughput
        )
    busy = replace(pod, pace=(1.0, 1.0, 1.0, 0.25))
    assert closed_loop(busy, 1).throughput == pytest.approx(closed_loop(pod, 1).throughput)
    assert closed_loop(busy, 9).throughput == pytest.approx(0.25 * closed_loop(pod, 9).throughput)


def test_metrics_of_a_pod_obey_littles_law_and_its_load() -> None:
    """L = lambda W: J. D. C. Little, Operations Research 9(3), 1961."""
    rate = 120.0
    outcome = open_loop(Pod(2, 2, 8, [0.004], 0.004), rate, REQUESTS)
    assert outcome.throughput == pytest.approx(rate, rel=0.02)
    assert outcome.inflight == pytest.approx(rate * mean(list(outcome.latencies)), rel=0.03)
    assert outcome.cpu == pytest.approx(rate * (0.004 + 2 * 0.004) / 2, rel=0.03)


def test_latency_saturation_and_use_rise_with_the_rate_and_stay_within_bounds() -> None:
    pod = Pod(2, 2, 8, [0.003], 0.004)
    outcomes = [open_loop(pod, rate, 5000) for rate in (10, 50, 90, 130, 160)]
    for figure in ("saturation", "inflight", "cpu"):
        values = [getattr(outcome, figure) for outcome in outcomes]
        assert values == sorted(values)
    for share in (0.5, 0.99):
        values = [outcome.quantile(share) for outcome in outcomes]
        assert values == sorted(values)
        assert values[0] >= 0.007 - 1e-9
    assert all(0 < outcome.saturation <= 1 and 0 < outcome.cpu <= 1 for outcome in outcomes)


def test_requests_that_arrive_at_given_times_wait_for_each_other() -> None:
    """One core, 10 ms each: the second comes 4 ms after the first, the third when both are done."""
    outcome = replayed(Pod(1, 1, 1, [SECONDS], 0.0), [0.0, 0.004, 0.03])
    assert outcome.latencies == pytest.approx([0.01, 0.01, 0.016])
    assert outcome.throughput == pytest.approx(3 / 0.04)
    assert outcome.cpu == pytest.approx(0.03 / 0.04)


def test_the_same_seed_gives_the_same_latencies() -> None:
    pod = Pod(2, 2, 8, [0.003, 0.004], 0.004)
    assert open_loop(pod, 90, 2000) == open_loop(pod, 90, 2000)
    assert open_loop(pod, 90, 2000) != open_loop(pod, 90, 2000, seed=1)
