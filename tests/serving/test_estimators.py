"""What the averages must say."""

import math

import pytest

from pthserve.serving.estimators import WINDOW, Busy, Smoothed


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_share_follows_what_is_in_use() -> None:
    clock = Clock()
    busy = Busy(clock=clock)
    assert busy.share() == 0
    with busy:
        clock.now = WINDOW
        assert busy.share() == pytest.approx(1 - math.exp(-1))
        clock.now = 100 * WINDOW
        assert busy.share() == pytest.approx(1)
    clock.now += WINDOW
    assert busy.share() == pytest.approx(math.exp(-1))


def test_half_the_time_in_use_is_a_share_of_half() -> None:
    clock = Clock()
    busy = Busy(clock=clock)
    for _ in range(10_000):
        with busy:
            clock.now += 0.01
        clock.now += 0.01
    assert busy.share() == pytest.approx(0.5, abs=0.01)


def test_half_the_capacity_in_use_is_a_share_of_half() -> None:
    clock = Clock()
    busy = Busy(4, clock)
    with busy, busy:
        clock.now = 100 * WINDOW
        assert busy.share() == pytest.approx(0.5)


def test_another_capacity_counts_from_then_on() -> None:
    clock = Clock()
    busy = Busy(4, clock)
    with busy, busy:
        clock.now = 100 * WINDOW
        busy.resize(2)
        assert busy.share() == pytest.approx(0.5)
        clock.now = 200 * WINDOW
        assert busy.share() == pytest.approx(1.0)


def test_the_first_observation_after_a_restart_is_the_average_and_until_then_the_old_one_stands() -> None:
    smoothed = Smoothed()
    for _ in range(16):
        smoothed.observe(100.0)
    smoothed.restart()
    assert smoothed.value == 100
    smoothed.observe(1.0)
    assert smoothed.value == 1


def test_the_first_observation_is_the_average() -> None:
    smoothed = Smoothed()
    assert smoothed.value == 0
    smoothed.observe(3.0)
    assert smoothed.value == 3
    smoothed.observe(5.0)
    assert smoothed.value == 4


def test_an_average_forgets() -> None:
    smoothed = Smoothed(count=16)
    for _ in range(16):
        smoothed.observe(100.0)
    for _ in range(100):
        smoothed.observe(1.0)
    assert smoothed.value == pytest.approx(1, abs=0.2)


def test_a_heavy_observation_counts_as_many() -> None:
    heavy, light = Smoothed(), Smoothed()
    heavy.observe(1.0, 2)
    heavy.observe(4.0)
    for value in (1.0, 1.0, 4.0):
        light.observe(value)
    assert heavy.value == pytest.approx(light.value)
