"""`python -m benchmarks.size`: what `pthserve size` predicts beside what a service does at open loops.

For each number of cores, the service curve is measured as `pthserve size` does. Then the service gets random
arrivals at RATES, and the 99th percentile is compared with the prediction. The measured boundary is where the
measured percentiles cross the limit.

A short measurement has few requests beyond the 99th percentile. So the simulation is also given the very
arrivals of the measurement: what is left of the difference then is not that of a short measurement.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click
import numpy as np

from pthserve.bench.load import Point, poisson
from pthserve.cli import demo
from pthserve.settings import Settings
from pthserve.sizing.measure import WARM_UP, core_counts, curve_of, photos_in, serving
from pthserve.sizing.prediction import Predictor
from pthserve.sizing.queueing import replayed

RATES = (0.35, 0.6, 0.8, 0.95, 1.1)
"""Shares of the predicted boundary; the last is beyond it, so that the measured one is between two."""
SHARE_OF_CAPACITY = 0.98
"""Of a rate at most, since there is no prediction at the capacity."""


def crossing(rates: Sequence[float], p99: Sequence[float], limit: float) -> float:
    """The rate at which `p99` reaches `limit`, between two of the rates; NaN if it does not.

    The logarithm of the percentile is interpolated.
    """
    for low, high, before, after in zip(rates, rates[1:], p99, p99[1:], strict=False):
        if before <= limit < after:
            share = (math.log(limit) - math.log(before)) / (math.log(after) - math.log(before))
            return low + share * (high - low)
    return math.nan


@click.command()
@click.argument("name", metavar="MODEL", default=demo.NAME)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--cores", multiple=True, type=click.IntRange(1), help="default: two counts of this machine")
@click.option("--limit", default=5.0, show_default=True, help="p99, as a multiple of a lone client's median")
@click.option("--seconds", default=3.0, show_default=True, help="of each closed loop")
@click.option("--open-seconds", default=16.0, show_default=True, help="of each open loop")
@click.option("--tune-budget", default=0.0, show_default=True, type=click.FloatRange(0))
def main(
    name: str,
    photos: Path | None,
    cores: tuple[int, ...],
    limit: float,
    seconds: float,
    open_seconds: float,
    tune_budget: float,
) -> None:
    """Print p99 as predicted and measured, their ratios and that of the boundaries.

    Each number of cores is one line of JSON.
    """
    settings = demo.resolved(Settings(model=name, tune_budget=tune_budget))
    images = photos_in(photos)
    for count in cores or core_counts()[-2:]:
        with serving(settings, count) as service:
            curve = curve_of(service, images, count, seconds, lambda text: click.echo(text, err=True))
            predictor = Predictor(curve)
            p99 = limit * curve.lone.latency["p50"]
            if not (boundary := predictor.boundary(p99)):
                raise click.ClickException(f"no load has a p99 of {1000 * p99:.1f} ms; raise --limit")
            rates = [min(share * boundary, SHARE_OF_CAPACITY * curve.capacity) for share in RATES]
            points = [Point(rate=rate, arrivals="poisson") for rate in rates]
            rounds = service.rounds(images, points, open_seconds)
        percentiles = [float(np.quantile(one.latencies, 0.99)) for one in rounds]
        same = [
            replayed(predictor.pod, list(poisson(rate, WARM_UP + open_seconds))).quantile(0.99)
            for rate in rates
        ]
        rows = [
            {
                "rate": round(rate, 2),
                "predicted_ms": round(1000 * predictor.at(rate).p99, 2),
                "measured_ms": round(1000 * percentile, 2),
                "ratio": round(predictor.at(rate).p99 / percentile, 3),
                "same_arrivals_ratio": round(replay / percentile, 3),
                "p50_ratio": round(predictor.at(rate).p50 / float(np.quantile(one.latencies, 0.5)), 3),
                "responses": len(one.latencies),
            }
            for rate, percentile, replay, one in zip(rates, percentiles, same, rounds, strict=True)
        ]
        click.echo(
            json.dumps(
                {
                    "model": curve.model,
                    "cores": count,
                    "capacity": round(curve.capacity, 2),
                    "loops": {loop.clients: round(loop.throughput, 2) for loop in curve.loops},
                    "lone_ms": {name: round(1000 * value, 2) for name, value in curve.lone.latency.items()},
                    "pass_ms": round(1000 * curve.image, 3),
                    "limit_ms": round(1000 * p99, 2),
                    "boundary": round(boundary, 2),
                    "boundary_ratio": round(boundary / crossing(rates, percentiles, p99), 3),
                    "rates": rows,
                    "median_error": round(median(abs(row["ratio"] - 1) for row in rows), 3),
                }
            )
        )


if __name__ == "__main__":
    main()
