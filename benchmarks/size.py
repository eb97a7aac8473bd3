"""`python -m benchmarks.size`: what `pthserve size` predicts beside what a service does at open loops.

For each number of cores, the service curve is measured as `pthserve size` does. Then the service gets random
arrivals at RATES, and the 99th percentile is compared with the prediction. The measured boundary is where the
measured percentiles, smoothed, cross the limit.

A measurement has few requests beyond the 99th percentile, which differs between random arrivals of the same
rate. So the simulation is also given the very arrivals of the measurement: what is left of the difference
then is that of the model. They are others than those that the curve was measured with.

Rates and latencies are stated at the speed that the machine had while the curve was measured; see
`pthserve.sizing.speed`. A rate during which the speed changed is measured again.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.polynomial import Polynomial

from pthserve.bench.load import Point, Round, poisson
from pthserve.cli import demo
from pthserve.settings import Settings
from pthserve.sizing.curve import Curve
from pthserve.sizing.measure import between, core_counts, curve_of, photos_in
from pthserve.sizing.prediction import Predictor, with_arrivals
from pthserve.sizing.service import Service, serving
from pthserve.sizing.speed import Speeds, Timed

RATES = (0.35, 0.6, 0.8, 0.95, 1.1)
"""Shares of the predicted boundary."""
BEYOND = (1.2, 1.3, 1.4, 1.5)
"""More of them, one after the other while the limit is not reached."""
STEADY, TRIES = 0.03, 3
"""Largest change of the speed during a rate, and how often one is measured until the change is smaller."""
FAR = 2
"""Number of RATES that are too far from the boundary to say where it is."""
FIRST_SEED = 1
"""Of the arrivals at the first rate; the other rates have the next ones."""


@dataclass(frozen=True, slots=True)
class Run:
    """What was predicted for a service, and then measured.

    Attributes:
        predictor: From the service curve, which was measured first.
        limit: Limit of the 99th percentile in seconds.
        boundary: Predicted rate at the limit.
        rounds: The open loops at RATES, and those at BEYOND that were needed.
    """

    predictor: Predictor
    limit: float
    boundary: float
    rounds: list[Timed]

    @property
    def curve(self) -> Curve:
        """The service curve."""
        return self.predictor.curve

    @property
    def speed(self) -> float:
        """The speed of the machine at which the curve is stated; see `Timed`."""
        assert self.curve.speed is not None
        return self.curve.speed


def measured(
    service: Service, images: Sequence[Path], cores: int, seconds: float, responses: int, times: float
) -> Run:
    """Measure the curve of a running service, and then open loops around the boundary that it predicts.

    Raises:
        click.ClickException: No load keeps `times` the median of a single client.
    """
    curve = curve_of(service, images, cores, seconds, lambda text: click.echo(text, err=True))
    predictor = Predictor(curve)
    limit = times * curve.lone.latency["p50"]
    if not (boundary := predictor.boundary(limit)):
        raise click.ClickException(f"no load has a p99 of {1000 * limit:.1f} ms; raise --limit")
    load = partial(service.load, images)
    speeds = Speeds(load, between(seconds))
    run = Run(predictor, limit, boundary, [])

    def measure(share: float, seed: int) -> Timed:
        rate = share * boundary * speeds.now / run.speed
        return speeds.timed(load(Point(rate=rate, arrivals="poisson", seed=seed), responses / rate))

    for seed, share in enumerate((*RATES, *BEYOND), FIRST_SEED):
        if share in BEYOND and run.rounds[-1].at(run.speed).p99 > limit:
            break
        run.rounds.append(steadiest(partial(measure, share, seed), STEADY, TRIES))
    return run


def steadiest(measure: Callable[[], Timed], change: float, tries: int) -> Timed:
    """Return the first load during which the speed changed by no more than `change`, a share.

    If none of so many tries is one, return that with the smallest change.
    """
    done: list[Timed] = []
    while len(done) < tries:
        done.append(measure())
        if done[-1].change <= change:
            return done[-1]
    return min(done, key=lambda one: one.change)


def rate_of(one: Round) -> float:
    """Of an open loop, in requests per second."""
    assert one.point.rate is not None
    return one.point.rate


def with_same_arrivals(predictor: Predictor, one: Round) -> float:
    """Return the predicted p99 in seconds with the arrivals of `one`."""
    rate = rate_of(one)
    arrivals = list(poisson(rate, one.warm_up + one.seconds, one.point.seed))
    correction = predictor.correction
    outcome = with_arrivals(predictor.pod, arrivals, correction.factor(rate), one.warm_up)
    return correction.quantile(outcome, 0.99, rate)


def crossing(rates: Sequence[float], p99: Sequence[float], limit: float) -> float:
    """The lowest rate at which `p99` reaches `limit`; NaN if it does not between the first and the last.

    Through the logarithms of the percentiles goes the parabola of the least squares, so that one that is too
    high by chance has less weight.
    """
    # Its roots would be inexact where it is almost a line.
    between = np.linspace(rates[0], rates[-1], 1001)
    logarithms = Polynomial.fit(rates, np.log(p99), 2)(between)
    reached = int(np.argmax(logarithms >= math.log(limit)))  # 0 where none or the first does
    here = slice(reached - 1, reached + 1)
    return float(np.interp(math.log(limit), logarithms[here], between[here])) if reached else math.nan


def figures(run: Run) -> dict[str, Any]:
    """Return predictions, measurements, their ratios and that of the boundaries."""
    curve, predictor = run.curve, run.predictor
    rounds = [one.at(run.speed) for one in run.rounds]
    rates = [rate_of(one) for one in rounds]
    found = [one.p99 for one in rounds]
    same = [with_same_arrivals(predictor, one) for one in rounds]
    ratios = [predicted / own for predicted, own in zip(same, found, strict=True)]
    reached, predicted = (crossing(rates[FAR:], one[FAR:], run.limit) for one in (found, same))
    return {
        "model": curve.model,
        "cores": curve.cores,
        "capacity": round(curve.capacity, 2),
        "assumed": list(curve.assumed),
        "loops": {loop.clients: round(loop.throughput, 2) for loop in curve.loops},
        "lone_ms": {name: round(1000 * value, 2) for name, value in curve.lone.latency.items()},
        "pass_ms": round(1000 * curve.image, 3),
        "limit_ms": round(1000 * run.limit, 2),
        "boundary": round(run.boundary, 2),
        "factors": [round(factor, 3) for factor in predictor.correction.factors],
        "stretches": [round(stretch, 3) for stretch in predictor.correction.stretches],
        "boundary_ratio": round(run.boundary / reached, 3),
        "same_arrivals_boundary_ratio": round(predicted / reached, 3),
        "rates": [
            {
                "rate": round(rate, 2),
                "measured_ms": round(1000 * own, 2),
                "same_arrivals_ratio": round(ratio, 3),
                "steady_ratio": round(predictor.at(rate).p99 / own, 3) if rate < curve.capacity else None,
                "speed": round(one.speed / run.speed, 3),
                "change": round(one.change, 3),
                "responses": len(one.round.latencies),
                "client_cpu": round(one.round.cpu, 3),
            }
            for rate, own, ratio, one in zip(rates, found, ratios, run.rounds, strict=True)
        ],
        "median_error": round(median(abs(ratio - 1) for ratio in ratios[: len(RATES)]), 3),
    }


@click.command()
@click.argument("name", metavar="MODEL", default=demo.NAME)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--cores", multiple=True, type=click.IntRange(1), help="default: two counts of this machine")
@click.option(
    "--limit", default=10.0, show_default=True, help="p99, as a multiple of a single client's median"
)
@click.option("--seconds", default=8.0, show_default=True, help="of each closed loop")
@click.option("--responses", default=3000, show_default=True, help="of each open loop")
@click.option("--tune-budget", default=0.0, show_default=True, type=click.FloatRange(0))
def main(
    name: str,
    photos: Path | None,
    cores: tuple[int, ...],
    limit: float,
    seconds: float,
    responses: int,
    tune_budget: float,
) -> None:
    """Print p99 as predicted and measured, their ratios and that of the boundaries.

    Each number of cores is one line of JSON.
    """
    settings = demo.resolved(Settings(model=name, tune_budget=tune_budget))
    images = photos_in(photos)
    for count in cores or core_counts()[-2:]:
        with serving(settings, count) as service:
            run = measured(service, images, count, seconds, responses, limit)
        click.echo(json.dumps(figures(run)))


if __name__ == "__main__":
    main()
