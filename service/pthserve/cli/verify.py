"""`pthserve verify`: verify the signature of a model."""

from pathlib import Path

import rich_click as click

from pthserve.cli.options import takes_settings
from pthserve.settings import Settings
from pthserve.text import MESSAGE, quoted


@click.command("verify")
@click.argument("model")
@click.option(
    "--key",
    "-k",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file with the public key.",
)
@takes_settings("sha256", "cache_dir", "max_download")
def command(key: Path, settings: Settings) -> None:
    """Verify the signature of a model.

    The exit code is 3 unless every byte of the model is as it was signed. MODEL is a path or an address, as
    for `pthserve serve`. Nothing of the model is parsed.
    """
    import tempfile

    from pthserve.addresses import shown
    from pthserve.cli.display import reading
    from pthserve.sources.fetched import fetched

    with reading(settings.model) as progress, tempfile.TemporaryDirectory() as folder:
        options = {"require_signature": key, "cache_dir": settings.cache_dir or Path(folder)}
        fetched(settings.model, settings.model_copy(update=options), progress)
    click.echo(quoted(f"{shown(settings.model)}: is as the owner of {key} has signed it", MESSAGE))
