"""`pthserve tune`: measure how fast this machine runs a model with each engine and precision."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import rich_click as click

from pthserve.cli.options import MODEL, model_options, takes_settings
from pthserve.planning.agreement import Evidence
from pthserve.planning.plan import Plan, Trial
from pthserve.settings import Settings
from pthserve.text import MESSAGE, quoted


@click.command("tune")
@MODEL
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write the plan to, for the --plan option of serve, predict and pack.",
)
@takes_settings(*model_options(without=("name", "decode", "max_pixels", "plan", "cache_dir", "golden")))
def command(settings: Settings, output: Path | None) -> None:
    """Find the fastest way to run a model on this machine.

    Measures the engines, precisions, thread counts and batch sizes that the machine supports. MODEL is the
    same as for `pthserve serve`. A packed model is tuned without PyTorch.
    """
    from pthserve.cli.display import reading
    from pthserve.loading.load import load
    from pthserve.planning.plan_files import write

    with reading(settings.model) as progress:
        model = load(settings.model, settings, progress, measure=True)
    model.forward.close()
    if output:
        write(model.plan, output)

    from rich.table import Table

    from pthserve.cli.display import show

    table = Table("engine", "precision", "threads", "batch", "images/s", "difference", "", box=None)
    for column in table.columns[2:6]:
        column.justify = "right"
    for row in _rows(model.plan):
        table.add_row(*row)
    show(table)
    if model.plan.evidence:
        click.echo("\nCompared with fp32 PyTorch:\n")
        table = Table(*_EVIDENCE, box=None)
        for column in table.columns[2:]:
            column.justify = "right"
        for one in model.plan.evidence:
            table.add_row(*_evidence(one))
        show(table)
    click.echo(model.plan.reason)


def _rows(plan: Plan) -> Iterator[Sequence[str]]:
    for trial in plan.trials:
        rate = f"{trial.rate:.1f}" if trial.rate else "-"
        yield (
            *(trial.engine, trial.precision, str(trial.threads), str(trial.batch), rate),
            f"{trial.difference:.4f}" if trial.agrees else "-",
            _note(trial, plan),
        )


_EVIDENCE = ("engine", "precision", "crops", "mean", "p95", "largest", "same", "same where clear", "accuracy")
"""Columns of the comparison with fp32 PyTorch."""


def _evidence(one: Evidence) -> Sequence[str]:
    """Return the row of a comparison with fp32 PyTorch."""
    return (
        *(one.engine, one.precision, str(one.crops)),
        *(f"{value:.4f}" for value in (one.mean, one.p95, one.largest)),
        "-" if one.same is None else f"{100 * one.same:.1f} %",
        "-" if one.clear is None else f"{one.kept} of {one.clear}",
        "-" if one.accuracy is None else f"{100 * one.accuracy:.2f} %",
    )


def _note(trial: Trial, plan: Plan) -> str:
    """Return why a trial failed, or whether it is the one that the plan follows."""
    ours = [one for one in plan.trials if _configuration(one) == _configuration(plan)]
    measured = [one.batch for one in ours if one.batch <= plan.max_batch]
    if trial not in ours or trial.batch != max(measured, default=0):
        return quoted(trial.note, MESSAGE)
    if trial.batch == plan.max_batch:
        return "chosen"
    return f"chosen; batches of up to {plan.max_batch} are used, but were not measured"


def _configuration(one: Trial | Plan) -> tuple[str, str, int]:
    return one.engine, one.precision, one.threads
