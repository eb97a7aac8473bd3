"""`pthserve pack`: write a packed model, a folder that is served without PyTorch."""

from pathlib import Path

import rich_click as click

from pthserve.cli.options import MODEL, model_options, takes_settings
from pthserve.settings import Settings
from pthserve.text import MESSAGE, quoted


@click.command("pack")
@MODEL
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write; an existing packed model is replaced.",
)
@takes_settings(*model_options(without=("device", "engine", "max_pixels")), tune_budget=0.0)
def command(settings: Settings, output: Path) -> None:
    """Write a packed model: a folder that is served without PyTorch.

    MODEL is a weights file, a folder that contains one, or `demo`. The packed model must give the same
    results as PyTorch, within --tolerance.

    The output is reproducible: the same input gives the same bytes. Tuning is therefore off unless
    --tune-budget is set. Without it, the plan is taken from --plan, or is the default for the processor.
    """
    from pthserve.cli.display import reading
    from pthserve.loading.pack import pack

    with reading(settings.model) as progress:
        made = pack(settings.model, output, settings, progress)
    kind = "" if made.task.name == "classification" else f"{made.task.name}, "
    summary = (
        f"{output}: packed {made.name}, version {made.version}, {made.architecture}, "
        f"{kind}{made.task.describe(made.labels).removeprefix('has ')}, "
        f"{made.size / 2**20:.1f} MiB; plan: {made.plan.reason}"
    )
    click.echo(quoted(summary, MESSAGE))
    if made.int8:
        faster = f"; {made.speedup:.2f} times as fast as without here" if made.speedup else ""
        click.echo(quoted(f"int8: {made.int8.words()}{faster}", MESSAGE))
