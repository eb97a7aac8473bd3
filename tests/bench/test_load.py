"""Closed and open loops: what they put on a service, and what they say of it."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pthserve.bench.client import Pool, Target
from pthserve.bench.load import Point, Round, measure, poisson

from .conftest import Service


def bench(service: Service, point: Point, **given: float) -> Round:
    target = Target.parse(service.url)
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
    settings: dict[str, Any] = {"seconds": 0.6, "warm_up": 0.1, "deadline": 1.0, "timeout": 10.0, **given}
    return asyncio.run(measure(lambda most: Pool(target, [request], most), point, **settings))


@pytest.mark.slow
def test_a_closed_loop_has_no_more_requests_out_than_clients(
    service: Service, slow: Callable[[int], None]
) -> None:
    service.work = slow
    result = bench(service, Point(clients=3))
    assert service.most_at_once == 3
    assert service.connections == 3
    assert result.statuses == {200: len(result.latencies)}
    assert min(result.latencies) >= 0.02
    assert result.throughput <= 3 / 0.02


@pytest.mark.slow
def test_an_open_loop_sends_at_its_rate_whatever_the_answers_do(service: Service) -> None:
    service.work = lambda _: time.sleep(0.2)
    result = bench(service, Point(rate=50), seconds=1.0, warm_up=0.0)
    assert len(result.latencies) == 50
    assert service.most_at_once >= 5  # 50 a second for 0.2 s each: 10, were every thread at once in time


@pytest.mark.slow
def test_random_arrivals_are_a_poisson_process_and_the_same_each_time(service: Service) -> None:
    """Of n arrivals on average, the number has the variance n; times between them are exponential."""
    due = [list(poisson(200, 50.0)) for _ in range(2)]
    assert due[0] == due[1]
    assert abs(len(due[0]) - 10_000) < 4 * 100
    gaps = np.diff(due[0])
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)
    result = bench(service, Point(rate=100, arrivals="poisson"))
    assert 30 <= len(result.latencies) <= 90
    assert result.to_dict()["arrivals"] == "poisson"


@pytest.mark.slow
def test_in_an_open_loop_a_stall_is_seen_by_every_request_that_was_due_in_it(service: Service) -> None:
    one_at_a_time = threading.Lock()

    def stall_once(number: int) -> None:
        with one_at_a_time:
            time.sleep(0.5 if number == 5 else 0)

    service.work = stall_once
    result = bench(service, Point(rate=50), seconds=1.0, warm_up=0.0)
    # 25 requests were due in the half second, evenly: half of them waited for more than half of it.
    assert sum(latency > 0.25 for latency in result.latencies) >= 10


@pytest.mark.slow
def test_what_came_before_the_warm_up_was_over_does_not_count(service: Service) -> None:
    service.work = lambda number: time.sleep(1.0 if number == 0 else 0.01)
    result = bench(service, Point(clients=1), warm_up=1.2, deadline=2.0)
    assert max(result.latencies) < 1.0
    assert len(service.bodies) > len(result.latencies)


@pytest.mark.slow
def test_an_answer_after_the_deadline_is_no_goodput(service: Service, slow: Callable[[int], None]) -> None:
    service.work = slow
    result = bench(service, Point(clients=1), deadline=0.01)
    assert result.throughput > 0
    assert result.goodput == 0


@pytest.mark.slow
def test_refusals_are_counted_and_are_no_latencies(service: Service, slow: Callable[[int], None]) -> None:
    service.status, service.work = 503, slow
    result = bench(service, Point(clients=2))
    assert result.statuses[503] > 0
    assert not result.latencies
    assert result.throughput == 0
    assert result.to_dict()["latency"]["p50"] is None


@pytest.mark.slow
def test_cut_connections_are_counted_and_tried_again(service: Service) -> None:
    service.status = 0
    result = bench(service, Point(clients=2))
    assert result.failures.total() > 0
    assert not result.statuses


@pytest.mark.slow
def test_a_service_that_is_gone_is_not_asked_in_a_busy_loop(service: Service) -> None:
    service.status = 0
    bench(service, Point(clients=1), seconds=0.5, warm_up=0.0)
    assert len(service.bodies) <= 6


@pytest.mark.slow
def test_a_request_without_an_answer_is_given_up(service: Service) -> None:
    service.work = lambda _: time.sleep(0.5)
    result = bench(service, Point(clients=1), timeout=0.05, seconds=0.3)
    assert result.failures["timeout"] > 0


@pytest.mark.slow
def test_the_client_says_its_own_cpu(service: Service, slow: Callable[[int], None]) -> None:
    service.work = slow
    assert 0 < bench(service, Point(clients=2)).cpu < 2
