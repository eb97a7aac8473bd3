"""`pthserve golden`: record or check golden images, the images with known answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from pthserve.addresses import is_address, shown
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
    *model_options(
        without=("name", "calibration", "weight_bits", "max_batch", "max_pixels", "tune_budget", "golden")
    ),
    precision="fp32",
)
def command(images: tuple[Path, ...], settings: Settings) -> None:
    """Record or check the expected results for golden images.

    With IMAGES, which must be in the model's folder: run the model on them and record its results in
    `model.yaml` as the expected results, replacing the golden images there. Check that they are right.
    Without IMAGES: run the model on the golden images as `serve` does; the exit code is 4 if one fails.
    """
    from pthserve.cli.local import fetched, loaded
    from pthserve.files import card

    if images and is_address(settings.model):
        raise PthserveError(
            f"{shown(settings.model)}: golden images are recorded in the model's folder; download the model "
            "with `pthserve fetch` first"
        )
    settings = fetched(settings)
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
    _show(model, images)
    click.echo(f"Recorded in {card.write_golden(folder, golden)}")


def _answers(model: "Model", images: Sequence[Path]) -> Iterator["Golden"]:
    from pthserve.files.golden import Golden

    for image in images:
        answer = model.task.golden(model(image))
        for name, value in answer.items():
            if isinstance(value, bytes):
                answer[name] = image.with_name(f"{image.stem}.recorded.png")
                answer[name].write_bytes(value)
        yield Golden(image, recorded=True, **answer)


def _check(model: "Model", settings: Settings) -> None:
    from pthserve.loading.golden import check_golden

    if not model.golden:
        raise PthserveError(f"{settings.model}: there are no golden images yet; pass IMAGES to record some")
    proof = check_golden(model, settings.tolerance, settings.decode)
    if not proof.agrees:
        raise GoldenError("; ".join(proof.disagreements))
    _show(model, [one.image for one in model.golden])
    unknown = all(one.probability is None and one.kind == "class" for one in model.golden)
    difference = (
        "the model card has no probabilities to compare"
        if unknown
        else f"the largest difference is {proof.difference:.2g}"
    )
    click.echo(f"All {len(model.golden)} golden images pass; {difference}")


def _show(model: "Model", images: Sequence[Path]) -> None:
    from pthserve.cli.display import predictions, show

    show(predictions([(image.name, model.task.rows(model(image).to_dict(1))) for image in images]))
