"""`pthserve golden`: record or check golden images, the images with known answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from pthserve.cli.options import MODEL, model_options, takes_settings
from pthserve.errors import GoldenError, PthserveError
from pthserve.settings import Settings

if TYPE_CHECKING:
    from pthserve.files.golden import Golden
    from pthserve.loading.model import Model


@click.command("golden")
@MODEL
@click.argument("images", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@takes_settings(
    *model_options(without=("name", "calibration", "max_batch", "max_pixels", "tune_budget", "golden")),
    precision="fp32",
)
def command(images: tuple[Path, ...], settings: Settings) -> None:
    """Record or check the expected results for golden images.

    With IMAGES, which must be in the model's folder: run the model on them and record its results in
    `model.yaml` as the expected results, replacing the golden images there. Check that they are right.
    Without IMAGES: run the model on the golden images as `serve` does; the exit code is 4 if one fails.
    """
    from pthserve.cli.local import loaded
    from pthserve.files import card

    path = Path(settings.model)
    folder = path if path.is_dir() else path.parent
    for image in images:
        if not image.resolve().is_relative_to(folder.resolve()):
            raise PthserveError(f"{image}: is not in the model's folder {folder}; copy it there first")
    if images and card.read(folder).weights.resolve() != card.read(path).weights.resolve():
        raise PthserveError(f"{folder / card.FILE}: describes different weights than {settings.model}")

    model = loaded(settings)
    if not images:
        _check(model, settings)
        return
    golden = list(_answers(model, images))
    _show(golden, model.labels)
    click.echo(f"Recorded in {card.write_golden(folder, golden)}")


def _answers(model: "Model", images: Sequence[Path]) -> Iterator["Golden"]:
    from pthserve.files.golden import Golden

    for image in images:
        answer = model(image)
        best = answer.class_index
        yield Golden(image, best, round(float(answer.probabilities[best]), 6), recorded=True)


def _check(model: "Model", settings: Settings) -> None:
    from pthserve.loading.golden import check_golden

    if not model.golden:
        raise PthserveError(f"{settings.model}: there are no golden images yet; pass IMAGES to record some")
    proof = check_golden(model, settings.tolerance, settings.decode)
    if not proof.agrees:
        raise GoldenError("; ".join(proof.disagreements))
    _show(list(_answers(model, [one.image for one in model.golden])), model.labels)
    known = any(one.probability is not None for one in model.golden)
    difference = (
        f"the largest difference is {proof.difference:.2g}"
        if known
        else "the model card has no probabilities to compare"
    )
    click.echo(f"All {len(model.golden)} golden images pass; {difference}")


def _show(golden: Sequence["Golden"], labels: Sequence[str]) -> None:
    from pthserve.cli.display import predictions, show

    show(
        predictions([(one.image.name, [(labels[one.class_index], one.probability or 1.0)]) for one in golden])
    )
