"""Measure: the service curve of this machine, from a real service on some of its cores."""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import resources
from pathlib import Path

from pthserve.bench.load import Point, Round
from pthserve.cpus import cpu_quota
from pthserve.engines.cpu import cpu
from pthserve.errors import PthserveError
from pthserve.scoring.listing import IMAGE_SUFFIXES
from pthserve.settings import Settings
from pthserve.sizing.curve import CLIENTS, SHARES, Curve, from_rounds, loops_of
from pthserve.sizing.service import Service, serving
from pthserve.sizing.speed import Speeds
from pthserve.text import counted

MOST_PHOTOS = 64
"""Photos that are sent in turn, spread evenly over the folder."""
LARGEST_SHARE = 0.98
"""Share of a request's latency in its pass at most: a request is also decoded."""
ENOUGH = 100
"""Responses to a single client from which their 99th percentile means anything."""
RESPONSES = 1000
"""Responses that an open loop should have, if it does not take more than LONGEST times the usual time."""
LONGEST = 4

STEADY = 0.2
"""By which share the speed may change while a curve is measured without a remark."""
BETWEEN, SHORTEST = 0.25, 0.5
"""Duration of the closed loops that tell the speed: this share of the others', at least these seconds."""
QUIET = 0.15
"""Cores that other processes may use while a curve is measured without a remark."""

_STAGE, _PASS = "pthserve_stage_duration_seconds", "pthserve_forward_duration_seconds"
_SIZES = rf'^{_PASS}_count{{batch_size="(\d+)"}}$'

_STAT = Path("/proc/stat")

Progress = Callable[[str], None]
"""Called with what is being done, in words."""


def core_counts() -> Sequence[int]:
    """Return 1, 2, 4, ... up to the number of CPUs that this process may use, and that number."""
    cpus = cpu_quota()
    return sorted({*(2**power for power in range(cpus.bit_length())), cpus})


def photos_in(folder: Path | None) -> Sequence[Path]:
    """Return up to MOST_PHOTOS images in `folder`, or the sample images of the package if it is None.

    Raises:
        PthserveError: There is no image.
    """
    place = Path(str(resources.files("pthserve.images") / "samples")) if folder is None else folder
    found = sorted(path for path in place.rglob("*") if path.name.lower().endswith(IMAGE_SUFFIXES))
    if not found:
        raise PthserveError(f"{place}: there is no image in this folder, such as a .jpg or a .png")
    count = min(len(found), MOST_PHOTOS)
    return [found[number * len(found) // count] for number in range(count)]


def measured(
    settings: Settings, photos: Sequence[Path], cores: int, seconds: float, progress: Progress
) -> Curve:
    """Return the service curve of the model of `settings` on `cores` of this machine's cores.

    Raises:
        PthserveError: The model cannot be served, there are too few cores, or requests fail.
    """
    progress(f"{counted(cores, 'core')}: starting the service")
    with serving(settings, cores) as service:
        return curve_of(service, photos, cores, seconds, progress)


def curve_of(
    service: Service, photos: Sequence[Path], cores: int, seconds: float, progress: Progress
) -> Curve:
    """Return the service curve of a running service.

    Args:
        photos: Images that are sent in turn.
        cores: Number of cores that it has.
        seconds: Duration of each closed loop. That of one client lasts twice as long, and so do open loops,
            or longer where the rate is low.

    Raises:
        PthserveError: Requests fail.
    """
    where = counted(cores, "core")
    info = service.info()
    progress(f"{where}: 1 client")
    load = partial(service.load, photos)
    speeds = Speeds(load, between(seconds))
    before, others = service.samples(), _Others()
    lone = load(Point(1), 2 * seconds)
    alone = service.samples()
    loads = [speeds.timed(lone)]
    for clients in CLIENTS[1:]:
        progress(f"{where}: {clients} clients")
        loads.append(speeds.timed(load(Point(clients), seconds)))
    after = service.samples()
    closed = loops_of([one.at(speeds.typical).to_dict() for one in loads], where)
    capacity = max(loop.throughput for loop in closed)
    for share in SHARES:
        progress(f"{where}: random arrivals at {100 * share:.0f} % of {capacity:.1f} requests per second")
        rate, usual = share * capacity * speeds.now / speeds.typical, 2 * seconds
        duration = min(LONGEST * usual, max(usual, RESPONSES / rate))
        loads.append(speeds.timed(load(Point(rate=rate, arrivals="poisson"), duration)))
    end = service.samples()
    rounds = [one.at(speeds.typical) for one in loads]
    used = end["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    loops, open_loops = from_rounds(rounds, where)
    height, width = info["preprocess"]["crop"]
    return Curve(
        model=info["name"],
        cores=cores,
        lanes=info["lanes"],
        max_batch=service.max_batch or info["plan"]["max_batch"],
        loops=loops,
        image=_image(rounds[0], _mean(_STAGE, 'stage="infer"', before, alone)),
        open_loops=open_loops,
        decode=_mean(_STAGE, 'stage="decode"', before, alone),
        passes={
            size: _mean(_PASS, f'batch_size="{size}"', alone, after)
            for size in sorted(map(int, re.findall(_SIZES, "\n".join(after), re.MULTILINE)))
        },
        ready=service.ready,
        memory=int(end["process_resident_memory_bytes"]),
        pixels=height * width * len(info["preprocess"]["mean"]),
        machine=f"{cpu(cores)}; {info['engine']} {info['precision']}",
        assumed=_doubts(rounds, cores, shared=service.shared, others=others.cores(used), change=speeds.range),
        speed=speeds.typical,
    )


def between(seconds: float) -> float:
    """Return the duration of the closed loops that tell the speed, from that of the others."""
    return max(SHORTEST, BETWEEN * seconds)


def _image(lone: Round, mean: float) -> float:
    """Return the typical duration of a lone image's pass, from the mean duration.

    On a machine with other work, a mean may exceed a median many times. So the pass has the share of the
    median latency that it has of the mean latency.
    """
    share = min(LARGEST_SHARE, mean / (sum(lone.latencies) / len(lone.latencies)))
    return share * float(lone.quantiles()[0])


class _Others:
    """What other processes, and the host of a virtual machine, use of the CPUs from now on."""

    def __init__(self) -> None:
        self._began = self._now()

    def cores(self, service: float) -> float:
        """Return the cores that they have used; the service has used so many seconds."""
        elapsed, used = (now - then for now, then in zip(self._now(), self._began, strict=True))
        return max(0.0, (used - service) / elapsed)

    @staticmethod
    def _now() -> tuple[float, float]:
        """The time, and the seconds of CPU that all processes but this one have used; see proc_stat(5)."""
        with suppress(OSError):
            user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split()[1:9])
            busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
            return time.monotonic(), busy - time.process_time()
        return time.monotonic(), 0.0


def _doubts(
    rounds: Sequence[Round], cores: int, *, shared: bool, others: float = 0.0, change: float = 0.0
) -> Sequence[str]:
    """Return what makes the measurements uncertain, as sentences.

    Args:
        shared: Whether the load generator had the same cores.
        others: Cores that other processes used.
        change: By which share the highest speed exceeded the lowest.
    """
    doubts = []
    if (count := len(rounds[0].latencies)) < ENOUGH:
        doubts.append(
            f"The latencies of a single client are those of {count} requests only: give more --seconds."
        )
    if others > QUIET:
        doubts.append(
            f"Other processes used {others:.2f} cores while {counted(cores, 'core')} of this machine were "
            "measured; pods may be faster. Measure again with nothing else on it."
        )
    if change > STEADY:
        doubts.append(
            f"The speed of this machine changed by {100 * change:.0f} % while {counted(cores, 'core')} of it "
            "were measured. The figures are those of its median speed; measure again if they are to be exact."
        )
    if shared:
        most = max(one.cpu for one in rounds)
        doubts.append(
            f"The load generator shared the {counted(cores, 'core')} and used up to {most:.2f} of them; pods "
            "have them for themselves."
        )
    if refused := sum(len(one.statuses) > 1 or bool(one.failures) for one in rounds):
        doubts.append(f"Not all requests were answered at {counted(refused, 'rate')} near the capacity.")
    return doubts


def _mean(name: str, labels: str, before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Return the mean of what the summary `name` observed between two looks, or in all if nothing then."""
    count, total = (f"{name}_{part}{{{labels}}}" for part in ("count", "sum"))
    observed = after[count] - before.get(count, 0.0)
    if not observed:
        return after[total] / after[count]
    return (after[total] - before.get(total, 0.0)) / observed
