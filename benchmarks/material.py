"""Material: the weights, photos and calibration images that a run needs, made on the fly."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import CALIBRATION, Packed, jpegs, others, packed, parts, random_weights

SIZES = {"small": (500, 375), "large": (4000, 3000)}
"""Photos by kind: width and height in pixels."""
PHOTOS = ("chelsea", "coffee")
"""Of scikit-image's."""


@dataclass(frozen=True, slots=True)
class Material:
    """Files, and folders of files.

    resnet18: weights and packs of a ResNet-18, random from a fixed seed: what it has learnt does not change
    how long it takes. photos: JPEGs by the keys of SIZES. others: other models by name. cache: for compiled
    graphs.
    """

    resnet18: Packed
    photos: dict[str, list[Path]]
    others: dict[str, Packed]
    cache: Path

    @classmethod
    def make(cls, folder: Path, *, quick: bool = False) -> "Material":
        """All of it, in `folder`. quick: int8 for the digits alone."""
        calibration, cache = None if quick else folder / "calibration", folder / "cache"
        cache.mkdir()
        photos = {kind: list(jpegs(PHOTOS, folder, size, f"-{kind}")) for kind, size in SIZES.items()}
        if calibration is not None:
            calibration.mkdir()
            list(parts(CALIBRATION, calibration, SIZES["small"]))
        weights = random_weights("resnet18", folder / "resnet18.pth")
        return cls(
            packed(weights, weights, calibration, photos["small"], folder / "resnet18"),
            photos,
            others(folder, photos["small"], calibration),
            cache,
        )
