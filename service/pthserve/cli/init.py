"""`pthserve init`: write a `model.yaml` with everything that was inferred about a model."""

from pathlib import Path

import rich_click as click

from pthserve.cli.options import MODEL, takes_settings
from pthserve.settings import Settings
from pthserve.text import MESSAGE, quoted


@click.command("init")
@MODEL
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; default: model.yaml beside the weights.",
)
@click.option("--force", is_flag=True, help="Add to a model.yaml that exists; its own lines stay.")
@takes_settings("sha256", "allow_code", "cache_dir", "max_download", "require_signature")
def command(output: Path | None, force: bool, settings: Settings) -> None:
    """Write a `model.yaml` with everything that was inferred about a model.

    What the weights file leaves no doubt about is stated. What was assumed is written as comments, with the
    alternatives: remove the `#` from the lines that are right. MODEL is the same as for `pthserve serve`.
    """
    from pthserve.cli.display import reading
    from pthserve.loading.card_draft import write
    from pthserve.loading.load import build

    with reading(settings.model) as progress:
        built = build(settings.model, settings, progress)
    file = write(built, output, force=force)
    click.echo(quoted(f"{file}: written", MESSAGE))
    for value in built.inferred:
        if value.uncertain:
            click.echo(quoted(f"Not stated yet: {value.subject}: {value.value}", MESSAGE))
