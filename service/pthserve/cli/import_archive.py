"""`pthserve import`: import a model archive of TorchServe into a folder that pthserve can serve."""

from pathlib import Path

import rich_click as click

from pthserve.text import MESSAGE, quoted


@click.command("import")
@click.argument("archive", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write, which must be new or empty; default: the model's name, in the current folder.",
)
def command(archive: Path, output: Path | None) -> None:
    """Import a model archive of TorchServe.

    Writes a folder with the weights, the labels and a `model.yaml`. ARCHIVE is a .mar or .tar.gz file or a
    folder, as torch-model-archiver writes them. No code in it is run or copied: neither its handler nor the
    class of an eager model. What was not imported is listed, with what to do.
    """
    from pthserve.loading.torchserve_import import import_archive

    made = import_archive(archive, output)
    classes = "" if made.classes is None else f", {made.classes} classes"
    what = f"{made.architecture}{classes}" if made.architecture else "architecture not known yet"
    click.echo(quoted(f"{made.folder}: {made.name}, {what}", MESSAGE))
    for note in made.notes:
        click.echo(quoted(note, MESSAGE))
    if made.architecture:
        click.echo(quoted(f"Serve it with `pthserve serve {made.folder}`", MESSAGE))
