"""Calibration: the photos that int8 is made from, read from a folder and divided by what they are for.

Every second photo is left for the comparison with fp32 PyTorch unless there are validation images; see
`validation.crops`. Of the others, most give the ranges of the activations, and every fourth measures what
each layer costs at int8: on the photos that gave the ranges, no value would be outside of them.
"""

from dataclasses import dataclass

import numpy as np

from pthserve.errors import EngineError
from pthserve.images.preprocess import Pixels
from pthserve.images.spec import Spec
from pthserve.options import ModelOptions
from pthserve.planning.crops import Crops, images_of, photo, spaced

FEWEST = 20
"""Number of photos that a calibration folder needs: with fewer, the ranges do not hold for other photos."""
MOST = 300
"""Number of photos that are used for the ranges; the default of NNCF."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Crops of photos of the kind that the model will see, uint8 (n, height, width, channels).

    Attributes:
        ranges: For the ranges of the activations.
        probes: Of other photos, for what each layer costs.
        photos: Number of photos that both are from.
    """

    ranges: Pixels
    probes: Pixels
    photos: int


def read(options: ModelOptions, spec: Spec, probes: int) -> Calibration:
    """Read the photos of the folder that `options` name, and of its subfolders.

    Files that are not images are skipped. Of few photos, parts are used too; see `Crops`.

    Args:
        probes: Number of crops to measure the layers on.

    Raises:
        EngineError: No folder is named, it has fewer than FEWEST photos, or one cannot be read.
    """
    folder = options.calibration
    if folder is None:
        raise EngineError(
            f"int8 needs calibration images: set --calibration to a folder of at least {FEWEST} photos of "
            f"the kind that the model will see, better {MOST}"
        )
    files = images_of(folder) if folder.is_dir() else []
    if len(files) < FEWEST:
        count = f"{len(files)} image{'s' * (len(files) > 1)}" if files else "no image"
        raise EngineError(
            f"{folder}: contains {count}; int8 needs at least {FEWEST} different photos of the kind that the "
            f"model will see, better {MOST}: half of them calibrate, and the others are compared on"
        )
    if options.validation is None:
        files = files[::2]
    probed = files[3::4]
    others = spaced([file for number, file in enumerate(files) if number % 4 != 3], MOST)
    ranges, measured = (
        np.concatenate(list(Crops([photo(file) for file in some], spec, "calibration images")))
        for some in (others, spaced(probed, probes))
    )
    return Calibration(ranges, measured[:probes], len(others) + len(probed))
