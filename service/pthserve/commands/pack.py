"""`pthserve pack`: a model as a folder that is served without torch."""

from pathlib import Path

import rich_click as click

from pthserve.commands.options import MODEL, takes_settings
from pthserve.settings import Settings
from pthserve.text import MESSAGE, quoted


@click.command("pack")
@MODEL
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to make; a packed model that is there is replaced.",
)
@takes_settings(
    *(
        "sha256",
        "allow_code",
        "name",
        "precision",
        "calibration",
        "decode",
        "threads",
        "max_batch",
        "tolerance",
    ),
    *("tune_budget", "plan", "cache_dir", "golden"),
    tune_budget=0.0,
)
def command(settings: Settings, output: Path) -> None:
    """Make a folder of a model, which is served without torch.

    MODEL is a weights file, a folder with one, or `demo`. Its answers must agree with PyTorch's.

    The same input makes the same bytes. So nothing is measured unless a --tune-budget allows it: the plan is
    the one of --plan, which `pthserve tune` wrote, or what is usual for the processor.
    """
    from pthserve.commands.display import reading
    from pthserve.model.pack import pack

    with reading(settings.model) as progress:
        made = pack(settings.model, output, settings, progress)
    told = (
        f"{output}: {made.name}, version {made.version}, {made.architecture}, {len(made.labels)} classes, "
        f"{made.size / 2**20:.1f} MiB; {made.plan.reason}"
    )
    click.echo(quoted(told, MESSAGE))
