"""`pthserve bench`: measure the latency and throughput of a service under load."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import rich_click as click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pthserve.bench import report
from pthserve.bench.client import Target
from pthserve.bench.load import ARRIVALS, Arrivals, Point, Round, measure_all
from pthserve.cli.display import show as show_table
from pthserve.cli.headers import HEADERS, Header
from pthserve.cli.numbers import Number

SWEEP = "1,2,4,8,16,32"
"""Numbers of clients for a report if neither --clients nor --rate is given."""


@click.command("bench")
@click.argument("url")
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--clients",
    "-c",
    help="Closed loop: number of clients that each wait for a response, such as `8` or `1,4,16`.",
)
@click.option(
    "--rate",
    "-r",
    help="Open loop: requests per second, however slow the responses are, such as `20` or `10,20,40`.",
)
@click.option(
    "--arrivals",
    type=click.Choice(ARRIVALS),
    default="even",
    show_default=True,
    help="Times of the requests with --rate: at equal intervals, or random as of many independent clients "
    "(a Poisson process).",
)
@click.option(
    "--seconds",
    "-s",
    default=10.0,
    show_default=True,
    type=Number(0.1),
    help="Duration of each measurement in seconds.",
)
@click.option(
    "--warm-up",
    default=1.0,
    show_default=True,
    type=Number(0),
    help="Seconds before each measurement that are not counted.",
)
@click.option(
    "--deadline",
    default=1.0,
    show_default=True,
    type=Number(0, min_open=True),
    help="Maximum seconds for a response to count as goodput.",
)
@click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=Number(0, min_open=True),
    help="Request timeout in seconds.",
)
@HEADERS
@click.option("--raw", is_flag=True, help="Send the image as the request body, not in a form.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option(
    "--report",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="HTML file to write with tables and curves.",
)
def command(
    url: str,
    images: tuple[Path, ...],
    clients: str | None,
    rate: str | None,
    arrivals: Arrivals,
    seconds: float,
    warm_up: float,
    deadline: float,
    timeout: float,
    headers: tuple[Header, ...],
    raw: bool,
    as_json: bool,
    page: Path | None,
) -> None:
    """Measure the latency and throughput of a service.

    Sends the IMAGES in turn to URL, or to its /predict if URL has no path. Without --clients and --rate, it
    runs 8 clients, or with --report a series from 1 to 32 clients.
    """
    points = _points(clients or (SWEEP if page and not rate else "" if rate else "8"), rate or "", arrivals)
    try:
        target = Target.parse(url)
        requests = [target.request(image, headers, raw=raw) for image in images]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with _display() as show:
        rounds = measure_all(
            target,
            requests,
            points,
            seconds=seconds,
            warm_up=warm_up,
            deadline=deadline,
            timeout=timeout,
            progress=show,
        )
    if page:
        page.write_text(report.render(target.url, len(images), rounds))
    if as_json:
        click.echo(
            json.dumps(
                {"url": target.url, "images": len(images), "rounds": [one.to_dict() for one in rounds]}
            )
        )
    else:
        show_table(_table(rounds))


def _points(clients: str, rate: str, arrivals: Arrivals) -> list[Point]:
    try:
        points = [Point(clients=int(number)) for number in clients.split(",") if number]
        points += [Point(rate=float(number), arrivals=arrivals) for number in rate.split(",") if number]
    except ValueError as error:
        raise click.UsageError(f"--clients and --rate must be numbers separated by commas: {error}") from None
    if any(
        point.clients < 1 or (point.rate is not None and not 0 < point.rate < math.inf) for point in points
    ):
        raise click.UsageError("--clients and --rate must be greater than 0")
    return points


@contextmanager
def _display() -> Iterator[Callable[[Sequence[Round]], None]]:
    """Show a live table if standard error is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda rounds: live.update(_table(rounds), refresh=True)


def _table(rounds: Sequence[Round]) -> Table:
    table = Table("load", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("responses/s", "goodput/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "errors", "own CPU"):
        table.add_column(name, justify="right")
    for column in table.columns:
        column.no_wrap = True
    for one in rounds:
        p50, _, p95, p99, worst = one.quantiles().tolist()
        table.add_row(
            str(one.point),
            f"{one.throughput:.1f}",
            f"{one.goodput:.1f}",
            *("-" if math.isnan(q) else f"{1000 * q:.1f}" for q in (p50, p95, p99, worst)),
            str(one.statuses.total() - one.statuses[200] + one.failures.total()),
            f"{100 * one.cpu:.0f} %",
        )
    return table
