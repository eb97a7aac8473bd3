"""A release with the values of `pthserve size` keeps its latency at the planned rate, and not far beyond it.

The kubelet of the local cluster gives the pod a core of its own, as the measurement did. A virtual machine
becomes slower and faster by a tenth within minutes, which near the limit changes the 99th percentile by half.
So a short closed loop before and after each rate says how fast the pod is beside the curve, and the rates are
those that the curve predicts at this speed.

It measures, and so needs the machine to itself.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
import yaml

from pthserve.bench.client import Target
from pthserve.bench.load import Point, Round, measure_all
from pthserve.cli import demo
from pthserve.loading.pack import pack
from pthserve.settings import Settings
from pthserve.sizing import curve as curves
from pthserve.sizing.measure import between, photos_in
from pthserve.sizing.speed import Speeds

from ..shared import until
from .release import SLIM, Release

pytestmark = pytest.mark.long

LIMIT = 10.0
"""Planned p99, as a multiple of the median of a single client."""
PLANNED, BEYOND = 0.9, 1.1
"""Rates of the measurements, as shares of the rate at the limit, which is exact to a tenth."""
LOOPS, SECONDS = 8.0, 40.0
"""Durations of a closed loop of the curve, and of a measurement."""
LIKE_THE_CURVE = 0.15
"""By which share the pod may be slower or faster than the service that was measured."""
REPEATS = 3
"""Measurements of each rate, of which the median counts: that of the same arrivals differs by half."""
QUIET = 15.0
"""Percent of the CPUs that the cluster itself may take while the curve is measured."""


def sized(*arguments: str | Path) -> dict[str, Any]:
    """The only plan of `pthserve size`, for one pod that may not be lost."""
    fixed = ("--nodes", "1", "--growth", "0", "--whole-cores", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "pthserve", "size", *map(str, arguments), *fixed],
        capture_output=True,
        text=True,
        check=True,
    )
    (plan,) = json.loads(done.stdout)["plans"]
    assert isinstance(plan, dict)
    return plan


def in_ms(seconds: float) -> str:
    """For `--p99`."""
    return f"{1000 * seconds:.3f}ms"


def test_the_latency_holds_at_the_planned_rate_and_not_beyond_the_limit(
    image: Callable[[str], str],
    claim: Callable[..., str],
    reachable: None,
    release: Release,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    image("slim")
    folder = tmp_path_factory.mktemp("sized")
    settings = demo.resolved(Settings(model=demo.NAME, tune_budget=0))
    pack(settings.model, folder / "model", settings)
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    curve, values = folder / "curve.json", folder / "values.yaml"
    until(lambda: psutil.cpu_percent(3.0) < QUIET, "a machine with nothing else to do", 180)
    sized(
        *(folder / "model", "--cores", "1", "--seconds", str(LOOPS), "--save-curve", curve),
        *("--rate", "1", "--most", "1", "--p99", "10s"),
    )
    (found,) = curves.read(curve, cores=1)
    assert found.speed is not None
    limit = LIMIT * found.lone.latency["p50"]
    wanted = ("--p99", in_ms(limit))
    boundary = sized("--curve", curve, "--rate", "1", *wanted)["boundary"]
    rate = f"{PLANNED * boundary:.3f}"
    plan = sized("--curve", curve, "--rate", rate, "--most", rate, "--values", values, *wanted)
    assert plan["pods"] == plan["most"] == 1

    weights = {"source": "pvc", "file": "model", "pvc": {"existingClaim": claim(folder)}}
    release.upgrade(SLIM, {"weights": weights}, yaml.safe_load(values.read_text()))

    (pod,) = release.pods
    assert pod.status.qos_class == "Guaranteed"
    target = Target.parse(release.address)
    requests = [target.request(photo) for photo in photos_in(None)]

    def measured(point: Point, seconds: float) -> Round:
        arguments = {"seconds": seconds, "warm_up": 1.0, "deadline": 60.0, "timeout": 60.0}
        (one,) = measure_all(target, requests, [point], **arguments)
        return one

    speeds = Speeds(measured, between(LOOPS))

    def at(share: float) -> Sequence[Round]:
        """Loads at `share` of the rate at which this pod, as fast as it is then, reaches the limit."""
        rounds = []
        for _ in range(REPEATS):
            speed = speeds.now / found.speed
            assert speed == pytest.approx(1, abs=LIKE_THE_CURVE)
            plan = sized("--curve", curve, "--rate", "1", "--p99", in_ms(speed * limit))
            rate = share * speed * plan["boundary"]
            one = speeds.timed(measured(Point(rate=rate, arrivals="poisson"), SECONDS)).round
            rounds.append(one)
            print(
                f"speed {speed:.3f}; {one.point}, {share} of that at {in_ms(limit)}: p99 {in_ms(one.p99)}, "
                f"{dict(one.statuses)}"
            )
        return rounds

    holds = at(PLANNED)
    assert all(set(one.statuses) == {200} for one in holds)
    assert median(one.p99 for one in holds) <= limit
    assert median(one.p99 for one in at(BEYOND)) > limit
