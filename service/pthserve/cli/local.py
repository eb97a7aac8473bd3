"""Local: a model that runs in the command's own process."""

from typing import TYPE_CHECKING

from pthserve.settings import Settings

if TYPE_CHECKING:
    from pthserve.loading.model import Model


def loaded(settings: Settings) -> "Model":
    """The settings' model, as it runs without being measured."""
    from pthserve.cli.display import reading
    from pthserve.loading.load import load

    with reading(settings.model) as progress:
        return load(settings.model, settings.model_copy(update={"tune_budget": 0.0}), progress)
