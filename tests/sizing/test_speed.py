"""speed: what was measured while the machine was slower or faster is stated at one speed."""

from collections.abc import Iterator

import pytest

from pthserve.bench.load import Point, Round, poisson
from pthserve.errors import PthserveError
from pthserve.sizing.speed import BUSY, Speeds, Timed


def loop(throughput: float) -> Round:
    """A closed loop of a second."""
    return Round(Point(BUSY), 1.0, seconds=1.0, latencies=[0.1] * round(throughput))


def of(*throughputs: float) -> Speeds:
    """Speeds on a machine that has these, one after the other."""
    coming: Iterator[float] = iter(throughputs)

    def load(point: Point, seconds: float) -> Round:
        assert (point, seconds) == (Point(BUSY), 2.0)
        return loop(next(coming))

    return Speeds(load, 2.0)


def test_a_load_on_a_machine_half_as_fast_is_stated_with_twice_the_rate_and_half_the_latency() -> None:
    open_loop = Round(
        Point(rate=10.0, arrivals="poisson"), 1.0, seconds=60.0, latencies=[0.2, 0.4], warm_up=2.0
    )
    found = Timed(open_loop, before=40, after=60).at(100)
    assert found.point == Point(rate=20.0, arrivals="poisson")
    assert (found.seconds, found.warm_up, found.latencies) == (30.0, 1.0, [0.1, 0.2])


def test_a_closed_loop_keeps_its_clients_and_has_another_throughput() -> None:
    found = Timed(loop(50), before=50, after=50).at(100)
    assert found.point == Point(BUSY)
    assert found.throughput == pytest.approx(100)


def test_the_arrivals_of_a_load_at_another_speed_are_those_that_it_had_on_another_clock() -> None:
    open_loop = Round(Point(rate=10.0, arrivals="poisson"), 1.0, seconds=60.0, warm_up=2.0)
    stated = Timed(open_loop, before=80, after=80).at(100)
    assert stated.point.rate is not None
    expected = [0.8 * at for at in poisson(10.0, 62.0)]
    assert list(poisson(stated.point.rate, stated.warm_up + stated.seconds)) == pytest.approx(expected)


def test_each_load_is_between_two_measurements_of_the_speed() -> None:
    speeds = of(100, 80, 120)
    first, second = speeds.timed(loop(1)), speeds.timed(loop(2))
    assert (first.before, first.after, second.before, second.after) == (100, 80, 80, 120)
    assert (speeds.now, speeds.typical) == (120, 100)
    assert speeds.range == pytest.approx(0.5)


def test_a_service_that_answers_nothing_has_no_speed() -> None:
    with pytest.raises(PthserveError, match="--seconds"):
        of(0)
