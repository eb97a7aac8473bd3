"""Curve: the service curve of one pod, as measured by closed and open loops, and the file that keeps it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pthserve.bench.load import Round
from pthserve.errors import PthserveError

FORMAT = 1
"""Of the file; a file of another format is refused."""
CLIENTS = (1, 2, 4, 8, 16, 32)
"""Numbers of clients of the closed loops."""
SHARES = (0.1, 0.25, 0.5, 0.8, 0.92)
"""Rates of the open loops, as shares of the highest throughput of the closed ones."""
QUANTILES = ("p50", "p90", "p95", "p99", "max")
"""Names of the latencies of a loop."""
FEWEST = 8
"""Clients from which a closed loop may stand for the most that a pod answers."""
LARGEST = 2**20
"""Maximum size of a file in bytes."""
LONE_PASS = 0.75
"""Share of a lone request's latency in the forward pass, where only the latency is known. It was 0.83 for a
ResNet-18 at fp32, 0.69 at bf16 and 0.57 at int8 (docs/performance.md)."""
DEFAULT_BATCH = 8
"""Maximum batch size where it is not known, as of a plan without measurements."""
BENCH = f"`pthserve bench URL IMAGES --clients {','.join(map(str, CLIENTS))} --json`"


@dataclass(frozen=True, slots=True)
class Loop:
    """What a closed loop measured.

    Attributes:
        clients: Number of clients; each waits for its response and then sends the next request.
        throughput: Responses per second.
        latency: Seconds by p50, p90, p95, p99 and max.
    """

    clients: int
    throughput: float
    latency: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """What an open loop with the random arrivals of `bench.load.poisson` measured.

    Attributes:
        rate: Requests per second.
        seconds: Duration of what counts. It comes after the warm-up.
        warm_up: Seconds of the same arrivals that do not count.
        latency: Seconds by p50, p90, p95, p99 and max.
    """

    rate: float
    seconds: float
    warm_up: float
    latency: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """The service curve of a pod with so many cores.

    Attributes:
        model: Name of the model.
        cores: Number of cores that the service had.
        lanes: Number of forward passes at the same time.
        max_batch: Maximum number of images in a pass.
        loops: The closed loops, by the number of clients.
        open_loops: The open loops, by rate; none if there were none.
        image: Seconds of the forward pass of a lone image.
        decode: Seconds to decode and preprocess a lone image; None if unknown.
        passes: Mean seconds of a forward pass by its number of images, over all loops; empty if unknown.
        ready: Seconds from the start of the service until it was ready, with a packed model; None if unknown.
        memory: Resident memory of the service in bytes after the load; None if unknown.
        pixels: Bytes of a decoded image that waits for its pass; None if unknown.
        machine: The processor, the engine and the precision, in words.
        assumed: What was assumed about it, as sentences.
        speed: The speed of the machine for which the figures hold, as in `speed.Timed`; None if unknown.
    """

    model: str
    cores: int
    lanes: int
    max_batch: int
    loops: Sequence[Loop]
    image: float
    open_loops: Sequence[OpenLoop] = ()
    decode: float | None = None
    passes: Mapping[int, float] = field(default_factory=dict)
    ready: float | None = None
    memory: int | None = None
    pixels: int | None = None
    machine: str = ""
    assumed: Sequence[str] = ()
    speed: float | None = None

    @property
    def capacity(self) -> float:
        """The highest throughput of the closed loops, in responses per second."""
        return max(loop.throughput for loop in self.loops)

    @property
    def lone(self) -> Loop:
        """The loop of one client."""
        return self.loops[0]


def loops_of(rounds: Sequence[Mapping[str, Any]], where: str) -> Sequence[Loop]:
    """Return the closed loops among `rounds`, which are those of `Round.to_dict`.

    Args:
        where: Where they are from, for messages.

    Raises:
        PthserveError: Requests failed, none was answered, or there is no loop of one client or none of FEWEST
            or more.
    """
    loops: dict[int, Loop] = {}
    for one in rounds:
        if one["clients"] is None:
            continue
        refused = sum(count for status, count in one["statuses"].items() if status != "200")
        if refused or one["failures"]:
            raise PthserveError(
                f"{where}: with {one['clients']} clients, {refused + sum(one['failures'].values())} requests "
                "were not answered with 200, so this load says nothing about latency"
            )
        if not one["throughput"]:
            raise PthserveError(
                f"{where}: with {one['clients']} clients, no response came in time; measure longer "
                "(--seconds)"
            )
        loops[one["clients"]] = Loop(
            one["clients"],
            _positive(one["throughput"]),
            {name: _positive(value) for name, value in one["latency"].items()},
        )
    if 1 not in loops or max(loops) < FEWEST:
        raise PthserveError(
            f"{where}: a curve needs a closed loop of 1 client, and one of {FEWEST} or more; write it with "
            f"{BENCH}"
        )
    return [loops[clients] for clients in sorted(loops)]


def open_loops_of(rounds: Sequence[Mapping[str, Any]]) -> Sequence[OpenLoop]:
    """Return the open loops with random arrivals among `rounds`, by rate.

    One with a request that was not answered with 200 says nothing about latency, and is left out.
    """
    found = (
        OpenLoop(
            _positive(one["rate"]),
            _positive(one["seconds"]),
            float(one.get("warm_up", 0.0)),
            {name: _positive(one["latency"][name]) for name in QUANTILES},
        )
        for one in rounds
        if one.get("arrivals") == "poisson" and list(one["statuses"]) == ["200"] and not one["failures"]
    )
    return tuple(sorted(found, key=lambda loop: loop.rate))


def from_rounds(rounds: Sequence[Round], where: str) -> tuple[Sequence[Loop], Sequence[OpenLoop]]:
    """Return the closed and the open loops of a load generator; raises as `loops_of`."""
    plain = [one.to_dict() for one in rounds]
    return loops_of(plain, where), open_loops_of(plain)


def write(curves: Sequence[Curve], path: Path) -> None:
    """Write `curves` to a file for `read`.

    Raises:
        PthserveError: The file cannot be written.
    """
    text = json.dumps({"format": FORMAT, "curves": [asdict(curve) for curve in curves]}, indent=1)
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise PthserveError(f"{path}: the curve cannot be written: {error.strerror}") from error


def read(path: Path, cores: int | None) -> Sequence[Curve]:
    """Read the curves that `write` wrote, or the figures of `pthserve bench --json`.

    Args:
        cores: Number of cores of the service that was measured; required for figures of `bench`, which do not
            contain it.

    Raises:
        PthserveError: The file is neither, is incomplete, or has no curve for so many cores.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise PthserveError(f"{path}: the file cannot be read: {error.strerror}") from error
    if len(text) > LARGEST:
        raise PthserveError(f"{path}: the file has more than {LARGEST} bytes, so it is not a curve")
    try:
        values = json.loads(text)
        if "rounds" in values:
            return [_of_bench(values["rounds"], cores, path)]
        if values["format"] != FORMAT:
            raise PthserveError(
                f"{path}: the format is {values['format']}; this version of pthserve reads format {FORMAT}"
            )
        curves = [_curve(one, path) for one in values["curves"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PthserveError(
            f"{path}: this is neither a curve of `pthserve size --save-curve` nor the figures of "
            f"`pthserve bench --json` ({type(error).__name__}: {error})"
        ) from error
    chosen = [curve for curve in curves if cores in (None, curve.cores)]
    if not chosen:
        there = ", ".join(str(curve.cores) for curve in curves) or "none"
        raise PthserveError(f"{path}: there is no curve for {cores} cores; the file has curves for {there}")
    return chosen


def _of_bench(rounds: Sequence[Mapping[str, Any]], cores: int | None, path: Path) -> Curve:
    if cores is None:
        raise PthserveError(
            f"{path}: figures of `pthserve bench` do not contain the number of cores of the service; give it "
            "as --cores"
        )
    loops = loops_of(rounds, str(path))
    return Curve(
        model=path.stem,
        cores=cores,
        lanes=2 - cores % 2,
        max_batch=DEFAULT_BATCH,
        loops=loops,
        image=LONE_PASS * loops[0].latency["p50"],
        open_loops=open_loops_of(rounds),
        machine="measured with `pthserve bench`",
        assumed=(
            f"A lone request is in its forward pass for {100 * LONE_PASS:.0f} % of its latency.",
            f"A batch has up to {DEFAULT_BATCH} images.",
        ),
    )


def _curve(values: Mapping[str, Any], path: Path) -> Curve:
    loops = [
        Loop(
            _whole(one["clients"]),
            _positive(one["throughput"]),
            {name: _positive(one["latency"][name]) for name in QUANTILES},
        )
        for one in values["loops"]
    ]
    open_loops = tuple(
        OpenLoop(
            _positive(one["rate"]),
            _positive(one["seconds"]),
            0.0 if one["warm_up"] == 0 else _positive(one["warm_up"]),
            {name: _positive(one["latency"][name]) for name in QUANTILES},
        )
        for one in values.get("open_loops", ())
    )
    clients = [loop.clients for loop in loops]
    if clients != sorted(set(clients)) or clients[:1] != [1] or clients[-1] < FEWEST:
        raise PthserveError(f"{path}: the loops must have 1 client, then more each, up to {FEWEST} or more")
    cores, lanes = _whole(values["cores"]), _whole(values["lanes"])
    if lanes > cores:
        raise PthserveError(f"{path}: lanes is {lanes}; it must not exceed cores, {cores}")
    return Curve(
        model=str(values["model"]),
        cores=cores,
        lanes=lanes,
        max_batch=_whole(values["max_batch"]),
        loops=loops,
        image=_positive(values["image"]),
        open_loops=open_loops,
        decode=None if values["decode"] is None else _positive(values["decode"]),
        passes={int(size): _positive(seconds) for size, seconds in values["passes"].items()},
        ready=None if values["ready"] is None else _positive(values["ready"]),
        memory=None if values["memory"] is None else _whole(values["memory"]),
        pixels=None if values["pixels"] is None else _whole(values["pixels"]),
        machine=str(values["machine"]),
        assumed=tuple(map(str, values["assumed"])),
        speed=None if values.get("speed") is None else _positive(values["speed"]),
    )


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is not a number greater than 0")
    return float(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**50:
        raise ValueError(f"{value!r} is not a whole number greater than 0")
    return value
