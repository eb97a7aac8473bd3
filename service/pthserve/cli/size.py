"""`pthserve size`: how many pods a model needs for a rate and a latency."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from pthserve.cli.numbers import Duration, Number
from pthserve.cli.options import model_options, takes_settings
from pthserve.settings import Settings
from pthserve.text import counted

if TYPE_CHECKING:
    from rich.table import Table

    from pthserve.sizing.curve import Curve
    from pthserve.sizing.plan import Demand, Plan

_RATE = Number(0, 1e7, min_open=True)
_OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command("size")
@click.argument("source", metavar="[MODEL]", required=False)
@click.option("--rate", required=True, type=_RATE, help="Planned requests per second, each with one image.")
@click.option(
    "--p99", required=True, type=Duration(), help="Maximum 99th percentile of latency, such as `50ms`."
)
@click.option(
    "--photos",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of images to send; default: the sample images of the package.",
)
@click.option(
    "--cores", type=click.IntRange(1, 4096), help="Cores of a pod; default: those with the fewest in total."
)
@click.option(
    "--seconds",
    default=5.0,
    show_default=True,
    type=Number(0.2, 600),
    help="Duration of each measurement in seconds.",
)
@click.option(
    "--curve",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: use a file of --save-curve, or of `pthserve bench --json` with --cores.",
)
@click.option("--save-curve", type=_OUTPUT, help="File to write the measurements to, for --curve.")
@click.option("--least", type=_RATE, help="Lowest rate, for the minimum number of pods; default: --rate.")
@click.option("--most", type=_RATE, help="Highest rate, for the maximum number of pods; default: 2 x --rate.")
@click.option(
    "--growth",
    default=50.0,
    show_default=True,
    type=Number(0, 10_000),
    help="Growth of the rate per minute in percent, while a new pod starts.",
)
@click.option(
    "--start",
    type=Duration(),
    help="Time from a wanted pod to a ready one, such as `40s`; default: the measured start and 10 s.",
)
@click.option(
    "--nodes",
    default=3,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="Number of nodes that the pods are spread over; one of them may be lost.",
)
@click.option(
    "--zones",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Number of zones; with more than one, a zone may be lost.",
)
@click.option(
    "--whole-cores",
    is_flag=True,
    help="Request as much memory as the limit: a kubelet whose CPU manager has the static policy then gives "
    "each pod cores of its own, as in the measurement.",
)
@click.option(
    "--metric",
    default="cpu",
    show_default=True,
    type=click.Choice(["cpu", "saturation", "inflight"]),
    help="Metric of the autoscaler in the Helm values; all but cpu need Prometheus.",
)
@click.option("--price", type=Number(0, 1e6), help="Price of a core or pod for an hour.")
@click.option(
    "--price-per",
    default="core",
    show_default=True,
    type=click.Choice(["core", "pod"]),
    help="What it is for.",
)
@click.option("--values", "values_file", type=_OUTPUT, help="File to write values of the Helm chart to.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@takes_settings(*model_options(without=("calibration", "weight_bits", "threads")))
def command(source: str | None, settings: Settings, **options: Any) -> None:
    """Calculate how many pods a model needs for a rate and a latency.

    Measures how a service of MODEL on this machine answers 1 to 32 clients, on 1, 2, 4, ... of its cores,
    and predicts the latency at any rate from that. MODEL is the same as for `pthserve serve`.
    """
    if (source is None) == (options["file"] is None):
        raise click.UsageError("Give either MODEL, to measure it on this machine, or --curve.")
    from pthserve.sizing.curve import read, write
    from pthserve.sizing.plan import best, plans
    from pthserve.sizing.values import write as write_values

    demand = _demand(options)
    curves = (
        read(options["file"], options["cores"])
        if source is None
        else _measured(settings.model_copy(update={"model": source}), options)
    )
    if options["save_curve"]:
        write(curves, options["save_curve"])
    found = plans(curves, demand)
    chosen = best(found)
    if options["values_file"]:
        write_values(options["values_file"], chosen, demand, options["metric"])
    if options["as_json"]:
        click.echo(json.dumps(_plain(found, chosen, demand, options)))
    else:
        _print(found, chosen, demand, options)


def _demand(options: dict[str, Any]) -> "Demand":
    from pthserve.sizing.plan import Demand

    rate = options["rate"]
    least, most = options["least"] or rate, options["most"] or 2 * rate
    if not least <= rate <= most:
        raise click.UsageError("--least must not exceed --rate, nor --rate --most.")
    return Demand(
        rate=rate,
        p99=options["p99"],
        least=least,
        most=most,
        growth=options["growth"] / 100,
        start=options["start"],
        nodes=options["nodes"],
        zones=options["zones"],
        whole_cores=options["whole_cores"],
    )


def _measured(settings: Settings, options: dict[str, Any]) -> "Sequence[Curve]":
    from pthserve.cli import demo
    from pthserve.sizing.measure import core_counts, measured, photos_in

    settings = demo.resolved(settings)
    photos = photos_in(options["photos"])
    counts = core_counts() if options["cores"] is None else [options["cores"]]
    return [
        measured(settings, photos, cores, options["seconds"], lambda text: click.echo(text, err=True))
        for cores in counts
    ]


def _plain(
    found: "Sequence[Plan]", chosen: "Plan", demand: "Demand", options: dict[str, Any]
) -> dict[str, Any]:
    """Return all plans as plain values for JSON, in seconds, bytes and requests per second."""
    from pthserve.sizing.values import values

    return {
        "demand": asdict(demand),
        "plans": [
            {**asdict(plan), "chosen": plan is chosen, "cost_per_million": _cost(plan, demand, options)}
            for plan in found
        ],
        "assumed": list(_assumptions(chosen, demand)),
        "values": values(chosen, demand, options["metric"]),
    }


def _cost(plan: "Plan", demand: "Demand", options: dict[str, Any]) -> float | None:
    return (
        None
        if options["price"] is None
        else round(plan.cost(options["price"], options["price_per"], demand.rate), 4)
    )


def _print(found: "Sequence[Plan]", chosen: "Plan", demand: "Demand", options: dict[str, Any]) -> None:
    from pthserve.cli.display import show

    click.echo(f"{chosen.curve.model}: {chosen.curve.machine}")
    click.echo(_durations(chosen.curve) + "\n")
    show(_sizes(found, chosen, demand, options))
    click.echo(f"\nOne pod with {counted(chosen.curve.cores, 'core')}, predicted:\n")
    show(_loads(chosen))
    click.echo(f"\n{chosen.pods} pods for {demand.rate:g} requests per second:\n")
    show(_answer(chosen))
    click.echo()
    for text in _assumptions(chosen, demand):
        click.echo(f"- {text}")


def _durations(curve: "Curve") -> str:
    """Return how long the parts of a request take, in words."""
    cores = counted(curve.cores, "core")
    decode = "" if curve.decode is None else f"decoding {_ms(curve.decode)}, "
    text = f"A lone request on {cores}: {decode}forward pass {_ms(curve.image)}."
    if curve.passes:
        passes = ", ".join(f"{size}: {_ms(seconds)}" for size, seconds in curve.passes.items())
        text += f" Passes under load, by images: {passes}."
    return text


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.justify = "right"
        column.no_wrap = True
    return table


def _sizes(found: "Sequence[Plan]", chosen: "Plan", demand: "Demand", options: dict[str, Any]) -> "Table":
    limit = f"p99 {1000 * demand.p99:g} ms"
    table = _table(
        *("cores", "p99 of\n1 client", "requests/s\nat most", f"requests/s\nat {limit}"),
        *("pods", "cores\nin total", "cost of\na million", ""),
    )
    for plan in found:
        cost = _cost(plan, demand, options)
        table.add_row(
            *(str(plan.curve.cores), _ms(plan.curve.lone.latency["p99"])),
            *(f"{plan.curve.capacity:.1f}", f"{plan.boundary:.1f}"),
            *(str(plan.pods), str(plan.cores), "-" if cost is None else f"{cost:.2f}"),
            "chosen" if plan is chosen else "",
        )
    return table


def _loads(chosen: "Plan") -> "Table":
    table = _table("requests/s", "p50", "p99", "saturation", "in flight", "CPU")
    for load in chosen.loads:
        table.add_row(
            *(f"{load.rate:.1f}", _ms(load.p50), _ms(load.p99)),
            *(f"{load.saturation:.2f}", f"{load.inflight:.1f}", f"{100 * load.cpu:.0f} %"),
        )
    return table


def _answer(plan: "Plan") -> "Table":
    from pthserve.sizing.plan import MIB

    table = _table("", "")
    for column in table.columns:
        column.justify = "left"
    table.show_header = False
    table.add_row("pods", f"{plan.pods} (at least {plan.least}, at most {plan.most})")
    table.add_row("CPU of a pod", f"{counted(plan.curve.cores, 'core')}, as request and as limit")
    memory = "not measured; keep the chart's"
    if plan.memory is not None:
        request, limit = (size // MIB for size in plan.memory)
        memory = f"request {request} MiB, limit {limit} MiB"
    table.add_row("memory of a pod", memory)
    targets = plan.targets
    table.add_row(
        "autoscaler's target",
        f"cpu {targets['cpu']:.0f} %, or saturation {targets['saturation']:.2f}, or inflight "
        f"{targets['inflight']:.1f}",
    )
    table.add_row("disruption budget", f"maxUnavailable {max(1, plan.lost)}")
    table.add_row(
        "at the planned rate", f"{plan.planned.rate:.1f} requests/s a pod, p99 {_ms(plan.planned.p99)}"
    )
    if plan.lost:
        load = plan.after_loss
        table.add_row(f"with {plan.lost} pods lost", f"{load.rate:.1f} requests/s a pod, p99 {_ms(load.p99)}")
    return table


def _assumptions(plan: "Plan", demand: "Demand") -> Iterator[str]:
    """Yield what the plan assumes, as sentences."""
    yield (
        "Requests have one image each, come from many independent clients (a Poisson process), and are "
        "spread evenly over the pods."
    )
    yield (
        f"The rate grows by at most {100 * demand.growth:g} % per minute; {plan.growing:.0f} s after it "
        f"exceeds {plan.target_rate:.1f} requests/s a pod, there is another pod."
    )
    if plan.lost:
        group = ("zone", demand.zones) if demand.zones > 1 else ("node", demand.nodes)
        yield f"Pods are spread over {group[1]} {group[0]}s, and one {group[0]} at a time is lost."
    else:
        yield "No node may be lost: there is one."
    if demand.whole_cores:
        yield "The kubelet's CPU manager has the static policy, so that a pod has cores of its own."
    else:
        yield "A pod has cores of its own; a CPU limit that is only a quota can make the latency higher."
    if plan.curve.cores % 2 and plan.curve.cores > 1:
        yield "With an odd number of cores, there is one forward pass at a time."
    yield from plan.curve.assumed


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.{0 if seconds >= 0.1 else 1}f} ms"
