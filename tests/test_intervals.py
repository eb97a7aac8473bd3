"""The confidence interval of a share."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest  # type: ignore[import-untyped]

from pthserve.intervals import QUANTILE, wilson

NEWCOMBE = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]
"""R. G. Newcombe, "Two-sided confidence intervals for the single proportion: comparison of seven methods",
Statistics in Medicine 17, 1998, table I, method 3."""


@pytest.mark.parametrize(("successes", "trials", "lower", "upper"), NEWCOMBE)
def test_the_bounds_are_those_that_are_published(
    successes: int, trials: int, lower: float, upper: float
) -> None:
    found = wilson(successes, trials)
    assert found is not None
    assert found.estimate == successes / trials
    assert (round(found.lower, 4), round(found.upper, 4)) == (lower, upper)


@given(st.integers(1, 10**6).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_the_bounds_are_scipy_s_and_hold_the_estimate(share: tuple[int, int]) -> None:
    found = wilson(*share)
    assert found is not None
    expected = binomtest(*share).proportion_ci(0.95, "wilson")
    assert found.lower == pytest.approx(expected.low, abs=1e-6)
    assert found.upper == pytest.approx(expected.high, abs=1e-6)
    assert 0 <= found.lower <= found.estimate <= found.upper <= 1


@given(st.integers(0, 10**4), st.integers(1, 10**4))
def test_more_trials_with_the_same_share_narrow_it(successes: int, others: int) -> None:
    trials = successes + others
    few, many = wilson(successes, trials), wilson(4 * successes, 4 * trials)
    assert few is not None
    assert many is not None
    assert many.upper - many.lower < few.upper - few.lower


def test_perfect_agreement_on_few_images_is_weak_evidence() -> None:
    """The smallest number of images, all of them the same, that shows 97 % is n with n / (n + z²) >= 0.97."""
    enough = math.ceil(0.97 / 0.03 * QUANTILE**2)
    assert enough == 125
    few, just = wilson(enough - 1, enough - 1), wilson(enough, enough)
    assert few is not None
    assert just is not None
    assert few.lower < 0.97 <= just.lower


def test_without_a_trial_there_is_none_and_what_is_no_share_is_refused() -> None:
    assert wilson(0, 0) is None
    for successes, trials in ((-1, 3), (4, 3), (1, 0)):
        with pytest.raises(ValueError, match="is not a share"):
            wilson(successes, trials)


def test_the_words_have_the_figures() -> None:
    found = wilson(97, 100)
    assert found is not None
    assert found.words() == "97.00% (95 % interval: 91.55% to 98.97%)"
