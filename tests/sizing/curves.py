"""Curves of pods whose latency is known: every request needs the same time of one core."""

from pthserve.sizing.curve import CLIENTS, Curve, Loop

SECONDS = 0.01
"""What a request needs."""


def latency(seconds: float) -> dict[str, float]:
    """The latencies of requests that all take as long."""
    return dict.fromkeys(("p50", "p90", "p95", "p99", "max"), seconds)


def curve(cores: int = 1, *, image: float = 0.006, memory: int | None = 300 * 2**20) -> Curve:
    """A pod without lanes: `cores` requests of SECONDS at a time, on a core each.

    image: seconds of it in the forward pass.
    """
    loops = [
        Loop(clients, min(clients, cores) / SECONDS, latency(SECONDS * max(1.0, clients / cores)))
        for clients in CLIENTS
    ]
    return Curve(
        model="cats",
        cores=cores,
        lanes=1,
        max_batch=1,
        loops=loops,
        image=image,
        decode=0.003,
        passes={1: image, 4: 4 * image},
        ready=2.0,
        memory=memory,
        pixels=224 * 224 * 3,
        machine="a machine",
    )
