"""`pthserve compare`: compare a user's preprocessing and results with those of pthserve, stage by stage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
import yaml

from pthserve.cli.numbers import Number
from pthserve.cli.options import MODEL, takes_settings
from pthserve.exits import DIFFERENT
from pthserve.settings import Settings
from pthserve.text import MESSAGE, quoted

if TYPE_CHECKING:
    from rich.table import Table

    from pthserve.comparison.compare import Comparison
    from pthserve.loading.model import Model


@click.command("compare")
@MODEL
@click.argument("function", metavar="SCRIPT.PY:FUNCTION")
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--levels",
    default=0.5,
    show_default=True,
    type=Number(0, 255),
    help="Mean difference of the tensors, in grey levels of 255, that counts as agreement.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@takes_settings(
    *("sha256", "allow_code", "device", "engine", "precision", "threads", "tolerance", "cache_dir"),
    *("max_download", "require_signature"),
    precision="fp32",
    tolerance=0.001,
)
@click.pass_context
def command(
    context: click.Context,
    function: str,
    images: tuple[Path, ...],
    levels: float,
    as_json: bool,
    settings: Settings,
) -> None:
    """Compare the preprocessing and results of your training script with those of a model.

    FUNCTION in SCRIPT.PY is the function that prepared images in training or validation. It receives the path
    of an image file, and returns the tensor that your model gets, of shape (channels, height, width), or
    probabilities or logits, or a tuple of both. The script is run with your permissions.

    The command says which stage differs first (decode, resize, crop, normalise, forward) and by how much,
    and prints the lines of `model.yaml` with which both agree. Name several photos that are not square.

    The exit code is 0 if both agree, and 5 if they differ.
    """
    from pthserve.cli.local import loaded
    from pthserve.comparison.compare import compare
    from pthserve.comparison.user_function import UserFunction

    users = UserFunction(function)  # before the model is loaded, which takes longer
    with loaded(settings) as model:
        found = compare(model, users, images, levels=levels, tolerance=settings.tolerance)
        if as_json:
            click.echo(json.dumps(found.to_dict()))
        else:
            _show(found, model)
    if not found.agrees:
        context.exit(DIFFERENT)


def _show(found: "Comparison", model: "Model") -> None:
    from pthserve.cli.display import show

    show(_table(found))
    for line in _summary(found, model):
        click.echo(line)


def _table(found: "Comparison") -> "Table":
    from rich.table import Table

    table = Table("stage", "", "pthserve", "your function", "difference", box=None)
    table.columns[4].justify = "right"
    for stage in found.stages:
        differs = {True: "differs", False: "agrees", None: "?"}[stage.differs]
        unit = "" if stage.name == "forward" else " of 255"
        difference = "" if stage.difference is None else f"{_figure(stage.difference)}{unit}"
        table.add_row(stage.name, differs, stage.ours, stage.theirs, difference)
    return table


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _summary(found: "Comparison", model: "Model") -> Iterator[str]:
    images = f"{found.images} image{'s' * (found.images > 1)}"
    if found.agrees:
        levels = (
            "" if found.levels is None else f"; the tensors differ by {found.levels:.2g} of 255 grey levels"
        )
        yield f"Both agree on {images}{levels}."
    elif found.first_difference:
        yield f"The first stage that differs is {found.first_difference}."
    for note in found.notes:
        yield quoted(note, MESSAGE)
    if found.card:
        from pthserve.loading import packed

        left = "" if found.left is None else f" to {found.left:.2g} of 255 grey levels"
        assert model.source is not None
        folder = model.source if model.source.is_dir() else model.source.parent
        where = (
            "the model.yaml that the model is packed from"
            if packed.is_packed(folder)
            else folder / "model.yaml"
        )
        yield f"With these lines in {where} both agree{left}:\n"
        yield yaml.safe_dump({"preprocessing": found.card}, sort_keys=False, default_flow_style=None).rstrip()
