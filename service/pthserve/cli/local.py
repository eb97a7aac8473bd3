"""Local: what a model says of image files, in the command's own process."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pthserve.errors import PthserveError, RequestError
from pthserve.settings import Settings

if TYPE_CHECKING:
    from pthserve.loading.model import Model


def loaded(settings: Settings) -> "Model":
    """The settings' model, as it runs without being measured."""
    from pthserve.cli.display import reading
    from pthserve.loading.load import load

    with reading(settings.model) as progress:
        return load(settings.model, settings.model_copy(update={"tune_budget": 0.0}), progress)


def answers(model: "Model", images: Sequence[Path], settings: Settings) -> "Iterator[Any]":
    """What `model` says of each of `images`; raises PthserveError where one cannot be decoded."""
    from pthserve.images.preprocess import crop

    for image in images:
        try:
            pixels = crop(
                image.read_bytes(), model.spec, decode=settings.decode, max_pixels=settings.max_pixels
            )
        except RequestError as error:
            raise PthserveError(f"{image}: {error}") from error
        yield model.task.answer(model.forward(pixels[None])[0], model.labels)
