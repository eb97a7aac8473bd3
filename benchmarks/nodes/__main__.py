"""`python -m benchmarks.nodes`: the chart's objects on a thousand simulated nodes, and a day of traffic."""

import contextlib
import json
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.nodes import day, page, scenarios
from benchmarks.nodes.cluster import ZONES, Cluster
from benchmarks.nodes.cluster import nodes as made
from benchmarks.nodes.control_plane import ControlPlane, programs
from benchmarks.nodes.world import World
from pthserve.sizing.curve import read
from pthserve.sizing.plan import Demand

FOLDER = Path(__file__).parent
GPU_SHARE = 0.06


@click.command()
@click.option("--nodes", default=1000, show_default=True, type=click.IntRange(30, 5000))
@click.option("--pods", default=300, show_default=True, type=click.IntRange(30, 5000), help="of a release")
@click.option("--rate", default=5_000.0, show_default=True, help="requests per second at the peak of the day")
@click.option("--minutes", default=8.0, show_default=True, help="how long the day is on the wall clock")
@click.option("--p99", default=0.05, show_default=True, help="maximum 99th percentile in seconds")
@click.option(
    "--curve",
    default=FOLDER / "curve.json",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="of `pthserve size --save-curve`",
)
@click.option("--only", multiple=True, type=click.Choice([*scenarios.ALL, "day"]), help="default: all")
@click.option(
    "--json", "output", type=click.Path(dir_okay=False, path_type=Path), help="where to add the figures"
)
@click.option(
    "--page",
    "written",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="where to put a table",
)
def main(
    nodes: int,
    pods: int,
    rate: float,
    minutes: float,
    p99: float,
    curve: Path,
    only: tuple[str, ...],
    output: Path | None,
    written: Path | None,
) -> None:
    """Run the scenarios and print what they found as JSON."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # all that was started is ended then, too
    (service,) = read(curve, 1)
    demand = Demand(rate=rate, p99=p99, least=rate / 5, most=2 * rate, zones=len(ZONES))
    found: dict[str, Any] = json.loads(output.read_text()) if output and output.exists() else {}
    with (
        tempfile.TemporaryDirectory(prefix="pthserve-") as folder,
        ControlPlane(programs(), Path(folder)) as plane,
        contextlib.ExitStack() as running,
    ):
        cluster = Cluster(plane)
        kubelets = {
            zone: running.enter_context(plane.kubelets(zone, FOLDER / "stages.yaml")) for zone in ZONES
        }
        cluster.add_nodes(made(nodes, GPU_SHARE))
        world = World(cluster, kubelets, FOLDER / "stages.yaml", nodes, pods, running)

        def play(name: str, scenario: Callable[[], dict[str, Any]]) -> None:
            if only and name not in only:
                return
            click.echo(name, err=True)
            found[name] = {"nodes": nodes, **scenario()}
            click.echo(json.dumps({name: found[name]}))
            if output:
                output.write_text(json.dumps(found, indent=1) + "\n")

        with plane.controllers(*scenarios.CONTROLLERS):
            cluster.until_ready(nodes)
            for name, scenario in scenarios.ALL.items():
                play(name, lambda scenario=scenario: scenario(world))  # type: ignore[misc]
        with plane.controllers(*day.CONTROLLERS):
            play("day", lambda: day.run(cluster, service, demand, minutes))
    if written:
        page.write(found, written)


if __name__ == "__main__":
    main()
