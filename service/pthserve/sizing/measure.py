"""Measure: the service curve of this machine, from a real service on some of its cores."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import uvloop

from pthserve.bench.client import Pool, Target
from pthserve.bench.load import Point, Round, measure, send_once
from pthserve.cpus import cpu_quota
from pthserve.engines.cpu import cpu
from pthserve.errors import PthserveError
from pthserve.options import ModelOptions
from pthserve.scoring.listing import IMAGE_SUFFIXES
from pthserve.settings import VARIABLE, Settings
from pthserve.sizing.curve import CLIENTS, Curve, from_rounds
from pthserve.text import counted

MOST_PHOTOS = 64
"""Photos that are sent in turn, spread evenly over the folder."""
WARM_UP = 0.5
"""Seconds of load before each measurement."""
TIMEOUT = 600.0
"""Seconds after which a request counts as failed. A slow model answers the last of many clients late."""
START = 900.0
"""Seconds within which the service must be ready; it may have to pack and tune the model."""
STOP = 20.0
"""Seconds within which the service must end."""

LARGEST_SHARE = 0.98
"""Share of a request's latency in its pass at most: a request is also decoded."""
ENOUGH = 100
"""Responses to a single client from which their 99th percentile means anything."""

_STAGE, _PASS = "pthserve_stage_duration_seconds", "pthserve_forward_duration_seconds"
_SIZES = rf'^{_PASS}_count{{batch_size="(\d+)"}}$'

Progress = Callable[[str], None]
"""Called with what is being done, in words."""


@dataclass(slots=True)
class Service:
    """A running service.

    Attributes:
        address: Its URL.
        ready: Seconds from its start until it was ready.
        max_batch: The setting; None for that of the plan.
    """

    address: str
    ready: float
    max_batch: int | None

    def info(self) -> Mapping[str, Any]:
        """The content of `/info`."""
        values: Mapping[str, Any] = (
            httpx.get(f"{self.address}/info", timeout=TIMEOUT).raise_for_status().json()
        )
        return values

    def samples(self) -> Mapping[str, float]:
        """The samples of `/metrics`: name, with its labels as they are written there, to value."""
        text = httpx.get(f"{self.address}/metrics", timeout=TIMEOUT).raise_for_status().text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def rounds(
        self,
        photos: Sequence[Path],
        points: Sequence[Point],
        seconds: float,
        warm_up: float = WARM_UP,
    ) -> Sequence[Round]:
        """Put each of the loads on the service for `seconds`, with the images `photos` in turn.

        Raises:
            PthserveError: The service does not answer the images with 200.
        """
        target = Target.parse(self.address)
        requests = [target.request(photo) for photo in photos]

        async def all_points() -> list[Round]:
            await send_once(target, requests, TIMEOUT)
            return [
                await measure(
                    lambda most: Pool(target, requests, most),
                    point,
                    seconds=seconds,
                    warm_up=warm_up,
                    deadline=TIMEOUT,
                    timeout=TIMEOUT,
                )
                for point in points
            ]

        return uvloop.run(all_points())


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
        seconds: Duration of each closed loop; that of one client lasts twice as long.

    Raises:
        PthserveError: Requests fail.
    """
    where = counted(cores, "core")
    info = service.info()
    progress(f"{where}: 1 client")
    before = service.samples()
    rounds = [*service.rounds(photos, [Point(1)], 2 * seconds)]
    alone = service.samples()
    for clients in CLIENTS[1:]:
        progress(f"{where}: {clients} clients")
        rounds += service.rounds(photos, [Point(clients)], seconds)
    after = service.samples()
    loops = from_rounds(rounds, where)
    height, width = info["preprocess"]["crop"]
    return Curve(
        model=info["name"],
        cores=cores,
        lanes=1 if info["engine"] != "openvino" or cores % 2 else 2,
        max_batch=service.max_batch or info["plan"]["max_batch"],
        loops=loops,
        image=_image(rounds[0], _mean(_STAGE, 'stage="infer"', before, alone)),
        decode=_mean(_STAGE, 'stage="decode"', before, alone),
        passes={
            size: _mean(_PASS, f'batch_size="{size}"', alone, after)
            for size in sorted(map(int, re.findall(_SIZES, "\n".join(after), re.MULTILINE)))
        },
        ready=service.ready,
        memory=int(after["process_resident_memory_bytes"]),
        pixels=height * width * len(info["preprocess"]["mean"]),
        machine=f"{cpu(cores)}; {info['engine']} {info['precision']}",
        assumed=_doubts(rounds[0]),
    )


def _image(lone: Round, mean: float) -> float:
    """Return the typical duration of a lone image's pass, from the mean duration.

    On a machine with other work, a mean may exceed a median many times. So the pass has the share of the
    median latency that it has of the mean latency.
    """
    share = min(LARGEST_SHARE, mean / (sum(lone.latencies) / len(lone.latencies)))
    return share * float(lone.quantiles()[0])


def _doubts(lone: Round) -> Sequence[str]:
    """Return what makes the latencies of a single client uncertain, as sentences."""
    if (count := len(lone.latencies)) >= ENOUGH:
        return ()
    return [f"The latencies of a single client are those of {count} requests only: give more --seconds."]


def _mean(name: str, labels: str, before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Return the mean of what the summary `name` observed between two looks, or in all if nothing then."""
    count, total = (f"{name}_{part}{{{labels}}}" for part in ("count", "sum"))
    observed = after[count] - before.get(count, 0.0)
    if not observed:
        return after[total] / after[count]
    return (after[total] - before.get(total, 0.0)) / observed


@contextmanager
def serving(settings: Settings, cores: int) -> Iterator[Service]:
    """Run `pthserve serve` on `cores` cores until the block ends.

    Only the options of the model are passed on: keys, limits and ports of the environment are for another
    service.

    Raises:
        PthserveError: There are too few cores, or the service does not get ready.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if cores > min(cpu_quota(), len(allowed)):
        raise PthserveError(
            f"{cores} cores cannot be measured on this machine, which has {cpu_quota()}; measure on one that "
            "has them, with --save-curve, and give the file as --curve"
        )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(VARIABLE.format(""))
    }
    for name in ModelOptions.model_fields:
        value = getattr(settings, name)
        if value != Settings.model_fields[name].default:
            environment[VARIABLE.format(name.upper())] = str(value)
    environment[VARIABLE.format("THREADS")] = str(cores)
    environment[VARIABLE.format("DRAIN_SECONDS")] = "0"
    environment[VARIABLE.format("DEADLINE")] = str(TIMEOUT)
    command = [sys.executable, "-m", "pthserve", "serve", settings.model, "--port", "0"]
    with tempfile.TemporaryDirectory(prefix="pthserve-size-") as folder:
        log = Path(folder, "log")
        began = time.monotonic()
        with log.open("wb") as written:
            os.sched_setaffinity(0, allowed[:cores])  # a child inherits that of the thread that starts it
            try:
                process = subprocess.Popen(  # noqa: S603
                    command, stdin=subprocess.DEVNULL, stdout=written, stderr=written, env=environment
                )
            finally:
                os.sched_setaffinity(0, allowed)
        try:
            address, ready = _ready(process, log, began)
            yield Service(address, ready, settings.max_batch)
        finally:
            _stop(process)


def _ready(process: "subprocess.Popen[bytes]", log: Path, began: float) -> tuple[str, float]:
    """Wait until the service is ready; its address, and the seconds that it took."""
    address = ""
    while time.monotonic() - began < START:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"]
            raise PthserveError(f"the service ended with exit code {process.returncode}: {lines[-1]}")
        if not address and (
            found := re.search(r"listening on (http://\S+)", log.read_text(errors="replace"))
        ):
            address = found[1]
        if address:
            with suppress(httpx.TransportError):
                if httpx.get(f"{address}/readyz", timeout=TIMEOUT).status_code == 200:
                    return address, time.monotonic() - began
        time.sleep(0.02)
    raise PthserveError(f"the service was not ready after {START:g} seconds")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
