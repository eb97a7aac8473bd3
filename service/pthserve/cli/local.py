"""Local: load a model in the process of a command."""

from typing import TYPE_CHECKING

from pthserve.settings import Settings

if TYPE_CHECKING:
    from pthserve.loading.model import Model


def fetched(settings: Settings) -> Settings:
    """`settings` with the model on this machine, of which the signature was verified if one is required."""
    from pthserve.cli.display import reading
    from pthserve.sources import fetched as sources

    with reading(settings.model) as progress:
        path = sources.fetched(settings.model, settings, progress)
    return settings.model_copy(update={"model": str(path), "require_signature": None})


def loaded(settings: Settings) -> "Model":
    """Load the model of `settings` without tuning."""
    from pthserve.cli.display import reading
    from pthserve.loading.load import load

    with reading(settings.model) as progress:
        return load(settings.model, settings.model_copy(update={"tune_budget": 0.0}), progress)
