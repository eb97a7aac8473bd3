"""Demo: where the model called `demo` is, and whose code its card may name."""

from pathlib import Path

from pthserve.errors import WeightsError
from pthserve.settings import Settings

NAME = "demo"
FOLDER = Path(__file__).parents[3] / "weights" / "imagenet"
"""Where a clone of the repository has it."""
FOLDER_IN_IMAGES = Path("/opt/demo")
"""Where a container image has it; PTHSERVE_MODEL names it there."""
CODE = "efficientnet_lite_pytorch"
"""The package that the demo's card names. Who asks for the demo allows it, for the demo alone."""


def resolved(settings: Settings) -> Settings:
    """`settings` with the demo's folder in place of its name, and with its code allowed.

    Raises:
        WeightsError: the demo is asked for and is not here, or its weights have not been made.
    """
    model = _folder() if settings.model == NAME else Path(settings.model)
    if not any(folder.is_dir() and model.resolve() == folder.resolve() for folder in _FOLDERS):
        return settings
    allowed = ",".join(sorted(settings.code_modules | {CODE}))
    return settings.model_copy(update={"model": str(model), "allow_code": allowed})


_FOLDERS = (FOLDER, FOLDER_IN_IMAGES)


def _folder() -> Path:
    folder = next((folder for folder in _FOLDERS if (folder / "model.yaml").exists()), FOLDER_IN_IMAGES)
    if not folder.is_dir():
        raise WeightsError(
            "the demo model is not part of this installation; give a model of your own, such as "
            "`pthserve serve path/to/model.pth`"
        )
    if folder == FOLDER and not (folder / "efficientnet-lite0.pth").exists():
        raise WeightsError(
            f"{folder}: the weights of the demo model are missing; run `make weights` in the repository"
        )
    return folder
