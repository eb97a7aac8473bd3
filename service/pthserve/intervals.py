"""Intervals: the confidence interval of a share, such as that of images on which two models agree."""

import math
from typing import NamedTuple

QUANTILE = 1.959964
"""97.5 % quantile of the standard normal distribution: both bounds together hold with 95 % confidence."""


class Interval(NamedTuple):
    """A share, 0 to 1, and the bounds that the true share is within with 95 % confidence."""

    lower: float
    estimate: float
    upper: float

    def words(self) -> str:
        """Return the figures in words."""
        return f"{self.estimate:.2%} (95 % interval: {self.lower:.2%} to {self.upper:.2%})"


def wilson(successes: int, trials: int) -> Interval | None:
    """Return the share of `successes` among `trials`, with its interval; None without a trial.

    The bounds are the Wilson score interval (E. B. Wilson, "Probable inference, the law of succession, and
    statistical inference", Journal of the American Statistical Association 22, 1927). Unlike the interval of
    the normal approximation, it holds for few trials and for shares close to 1; L. D. Brown, T. T. Cai and
    A. DasGupta recommend it in "Interval estimation for a binomial proportion", Statistical Science 16, 2001.

    Raises:
        ValueError: `successes` is negative or larger than `trials`.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is not a share")
    if not trials:
        return None
    squared = QUANTILE**2
    centre = successes + squared / 2
    half = QUANTILE * math.sqrt(successes * (trials - successes) / trials + squared / 4)
    lower, upper = ((centre + sign * half) / (trials + squared) for sign in (-1, 1))
    # Rounding must not put a bound on the wrong side of the estimate where all or none succeed.
    share = successes / trials
    return Interval(min(max(lower, 0.0), share), share, max(min(upper, 1.0), share))
