"""A prediction follows the measured curve, and its boundary is where the limit is exceeded."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from pthserve.bench.load import poisson
from pthserve.sizing.curve import Curve, Loop, OpenLoop
from pthserve.sizing.prediction import PRECISION, SHARES, Predictor, fitted, with_arrivals
from pthserve.sizing.queueing import closed_loop

from .curves import SECONDS, curve
from .test_queueing import crommelin

MEASURED = {1: 76.9, 2: 86.0, 4: 90.0, 8: 92.0, 16: 95.0, 32: 97.0}
"""Throughput by clients of a ResNet-18 on two cores."""


def resnet18() -> Curve:
    loops = [
        Loop(clients, rate, {"p50": 0.0125, "p90": 0.014, "p95": 0.0145, "p99": 0.017, "max": 0.02})
        for clients, rate in MEASURED.items()
    ]
    return replace(curve(2), lanes=2, max_batch=8, image=0.009, loops=loops)


def test_the_fitted_pod_has_the_throughput_of_each_closed_loop() -> None:
    pod = fitted(resnet18())
    for clients, throughput in MEASURED.items():
        assert closed_loop(pod, clients).throughput == pytest.approx(throughput, rel=0.01)
    assert len(pod.pace) == 32


def test_a_lone_request_has_the_measured_median_at_a_low_rate() -> None:
    assert Predictor(resnet18()).at(1.0).p50 == pytest.approx(0.0125, rel=0.05)


@pytest.mark.slow
def test_a_pod_that_serves_one_request_after_the_other_has_the_latencies_of_m_d_1() -> None:
    load = Predictor(curve(image=1e-6)).at(0.7 / SECONDS)
    assert crommelin(load.rate, SECONDS, load.p99 - SECONDS) == pytest.approx(0.99, abs=0.003)
    assert load.cpu == pytest.approx(0.7, rel=0.02)


def slower(plain: Predictor, factors: Mapping[float, float]) -> list[OpenLoop]:
    """Open loops at these rates, at which all work takes so many times as long as in the simulation."""
    seconds, warm_up = 20.0, 0.5
    loops = []
    for rate, factor in factors.items():
        outcome = with_arrivals(plain.pod, list(poisson(rate, warm_up + seconds)), factor, warm_up)
        latency = {name: outcome.quantile(share) for name, share in SHARES.items()}
        loops.append(OpenLoop(rate, seconds, warm_up, latency))
    return loops


@pytest.mark.slow
def test_predictions_follow_open_loops_of_a_pod_that_is_slower_than_its_closed_loops() -> None:
    plain = Predictor(resnet18())
    corrected = Predictor(replace(resnet18(), open_loops=slower(plain, {40.0: 1.05, 70.0: 1.1})))
    for rate, factor in ((20.0, 1.05), (40.0, 1.05), (55.0, 1.075), (70.0, 1.1), (80.0, 1.1)):
        assert corrected.correction.factor(rate) == pytest.approx(factor, rel=0.005)
        assert corrected.at(rate).p99 == pytest.approx(factor * plain.at(factor * rate).p99, rel=0.1)
    assert corrected.boundary(0.1) < plain.boundary(0.1) / 1.05


@pytest.mark.slow
def test_a_loop_during_which_the_machine_was_faster_than_in_the_others_has_less_weight() -> None:
    plain = Predictor(resnet18())
    loops = slower(plain, {10.0: 1.2, 25.0: 1.18, 40.0: 0.95, 55.0: 1.1, 70.0: 1.08})
    assert Predictor(replace(resnet18(), open_loops=loops)).correction.factor(40.0) > 1.08


@pytest.mark.slow
def test_of_two_loops_at_one_rate_the_mean_counts() -> None:
    plain = Predictor(resnet18())
    loops = [*slower(plain, {40.0: 1.0}), *slower(plain, {40.0: 1.1})]
    corrected = Predictor(replace(resnet18(), open_loops=loops))
    assert corrected.correction.factor(40.0) == pytest.approx(math.sqrt(1.1), rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("stretch", [-0.15, 0.2])
def test_predictions_follow_an_open_loop_whose_latencies_vary_less_or_more_than_the_simulated_ones(
    stretch: float,
) -> None:
    plain = Predictor(resnet18())
    rate, seconds, warm_up = 40.0, 20.0, 0.5
    outcome = with_arrivals(plain.pod, list(poisson(rate, warm_up + seconds)), 1.0, warm_up)
    p50, p90, p95, p99 = (-math.log10(1 - share) for share in (0.5, 0.9, 0.95, 0.99))
    middle = (p50 + p90 + p95 + p99) / 4
    latency = {
        name: outcome.quantile(share) * math.exp(stretch * (-math.log10(1 - share) - middle))
        for name, share in SHARES.items()
        if share < 1
    }
    loop = OpenLoop(rate, seconds, warm_up, {**latency, "max": outcome.quantile(1.0)})
    corrected = Predictor(replace(resnet18(), open_loops=[loop]))
    assert corrected.correction.stretch == pytest.approx(stretch, abs=0.01)
    for own, uncorrected, position in (
        (corrected.at(rate).p50, plain.at(rate).p50, p50),
        (corrected.at(rate).p99, plain.at(rate).p99, p99),
    ):
        assert own == pytest.approx(uncorrected * math.exp(stretch * (position - middle)), rel=0.02)


@pytest.mark.slow
def test_the_boundary_rises_with_the_limit_and_is_where_it_is_exceeded() -> None:
    predictor = Predictor(resnet18())
    boundaries = [predictor.boundary(limit) for limit in (0.02, 0.05, 0.1, 0.3)]
    assert boundaries == sorted(set(boundaries))
    for limit, boundary in zip((0.05, 0.1), boundaries[1:3], strict=True):
        assert predictor.at(boundary).p99 <= limit
        assert predictor.at(boundary * (1 + 3 * PRECISION)).p99 > limit


@pytest.mark.slow
def test_the_boundary_of_any_limit_is_below_the_capacity_and_of_an_impossible_one_is_0() -> None:
    predictor = Predictor(curve())
    assert 0.95 / SECONDS < predictor.boundary(100.0) < 1 / SECONDS
    assert predictor.boundary(0.9 * SECONDS) == 0


@pytest.mark.parametrize("rate", [0.0, -1.0, 1 / SECONDS, 1000.0])
def test_a_rate_without_a_steady_state_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        Predictor(curve()).at(rate)
