"""`python -m benchmarks.size`: what `pthserve size` predicts beside what a service does at open loops.

For each number of cores, the service curve is measured as `pthserve size` does. Then the service gets random
arrivals at RATES, and the 99th percentile is compared with the prediction. The measured boundary is where the
measured percentiles, smoothed, cross the limit.

A measurement has few requests beyond the 99th percentile, which differs between random arrivals of the same
rate. So the simulation is also given the very arrivals of the measurement: what is left of the difference
then is that of the model. They are others than those that the curve was measured with.

Rates and latencies are stated at the speed that the machine had while the curve was measured; see
`pthserve.sizing.speed`. Even so, the 99th percentile of the same arrivals differs by half between one minute
and the next on a virtual machine, so each rate is measured several times, in turn, and the median counts.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from operator import truediv
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
FAR = 2
"""Number of RATES that are too far from the boundary to say where it is."""
FIRST_SEED = 1
"""Of the arrivals of the first open loop; the other ones have the next ones."""


@dataclass(frozen=True, slots=True)
class Run:
    """What was predicted for a service, and then measured.

    Attributes:
        predictor: From the service curve, which was measured first.
        limit: Limit of the 99th percentile in seconds.
        boundary: Predicted rate at the limit.
        loops: The open loops at each of RATES, and at those of BEYOND that were needed.
    """

    predictor: Predictor
    limit: float
    boundary: float
    loops: list[list[Timed]]

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
    service: Service,
    images: Sequence[Path],
    cores: int,
    seconds: float,
    responses: int,
    repeats: int,
    times: float,
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
    run = Run(predictor, limit, boundary, [[] for _ in RATES])
    seeds = count(FIRST_SEED)

    def measure(share: float) -> Timed:
        rate = share * boundary * speeds.now / run.speed
        point = Point(rate=rate, arrivals="poisson", seed=next(seeds))
        return speeds.timed(load(point, responses / rate))

    for _ in range(repeats):
        for share, loops in zip(RATES, run.loops, strict=True):
            loops.append(measure(share))
    for share in BEYOND:
        if median(one.at(run.speed).p99 for one in run.loops[-1]) > limit:
            break
        run.loops.append([measure(share) for _ in range(repeats)])
    return run


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
    return correction.quantile(outcome, 0.99)


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
    rates, found, same, rows = [], [], [], []
    for loops in run.loops:
        rounds = [one.at(run.speed) for one in loops]
        own = [one.p99 for one in rounds]
        predicted = [with_same_arrivals(predictor, one) for one in rounds]
        rates.append(rate := median(map(rate_of, rounds)))
        found.append(p99 := median(own))
        same.append(median(predicted))
        rows.append(
            {
                "rate": round(rate, 2),
                "measured_ms": round(1000 * p99, 2),
                "each_ms": [round(1000 * one, 2) for one in own],
                "same_arrivals_ratio": round(median(map(truediv, predicted, own)), 3),
                "steady_ratio": (round(predictor.at(rate).p99 / p99, 3) if rate < curve.capacity else None),
                "speeds": [round(one.speed / run.speed, 3) for one in loops],
                "responses": sum(len(one.latencies) for one in rounds),
                "client_cpu": round(median(one.cpu for one in rounds), 3),
            }
        )
    reached, boundary = (crossing(rates[FAR:], one[FAR:], run.limit) for one in (found, same))
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
        "stretch": round(predictor.correction.stretch, 3),
        "boundary_ratio": round(run.boundary / reached, 3),
        "same_arrivals_boundary_ratio": round(boundary / reached, 3),
        "rates": rows,
        "median_error": round(median(abs(row["same_arrivals_ratio"] - 1) for row in rows[: len(RATES)]), 3),
    }


@click.command()
@click.argument("name", metavar="MODEL", default=demo.NAME)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--cores", multiple=True, type=click.IntRange(1), help="default: two counts of this machine")
@click.option(
    "--limit", default=10.0, show_default=True, help="p99, as a multiple of a single client's median"
)
@click.option("--seconds", default=8.0, show_default=True, help="of each closed loop")
@click.option("--responses", default=2000, show_default=True, help="of each open loop")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="of each rate")
@click.option("--tune-budget", default=0.0, show_default=True, type=click.FloatRange(0))
def main(
    name: str,
    photos: Path | None,
    cores: tuple[int, ...],
    limit: float,
    seconds: float,
    responses: int,
    repeats: int,
    tune_budget: float,
) -> None:
    """Print p99 as predicted and measured, their ratios and that of the boundaries.

    Each number of cores is one line of JSON.
    """
    settings = demo.resolved(Settings(model=name, tune_budget=tune_budget))
    images = photos_in(photos)
    for number in cores or core_counts()[-2:]:
        with serving(settings, number) as service:
            run = measured(service, images, number, seconds, responses, repeats, limit)
        click.echo(json.dumps(figures(run)))


if __name__ == "__main__":
    main()
