"""Local: load a model in the process of a command."""

from typing import TYPE_CHECKING

from pthserve.settings import Settings

if TYPE_CHECKING:
    from pthserve.loading.model import Model


def loaded(settings: Settings) -> "Model":
    """Load the model of `settings` without tuning."""
    from pthserve.cli.display import reading
    from pthserve.loading.load import load

    with reading(settings.model) as progress:
        return load(settings.model, settings.model_copy(update={"tune_budget": 0.0}), progress)
