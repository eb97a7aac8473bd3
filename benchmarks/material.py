"""Material: the weights, photos and calibration images that a run needs, made on the fly."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SIZES = {"small": (500, 375), "large": (4000, 3000)}
"""Photos by kind: width and height in pixels."""
PHOTOS = ("chelsea", "coffee")
"""Of scikit-image's."""
CALIBRATION = ("astronaut", "cat", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "rocket")
QUALITY = 90


@dataclass(frozen=True, slots=True)
class Material:
    """Files, and folders of files.

    weights: a ResNet-18's, random from a fixed seed: what it has learnt does not change how long it takes.
    photos: JPEGs by the keys of SIZES. calibration: a folder of images for int8. cache: for tuned plans, so
    that every service of a kind runs the same one.
    """

    weights: Path
    photos: dict[str, list[Path]]
    calibration: Path
    cache: Path

    @classmethod
    def make(cls, folder: Path) -> "Material":
        """All of it, in `folder`."""
        for name in ("calibration", "cache"):
            (folder / name).mkdir()
        photos = {kind: list(_jpegs(PHOTOS, folder, size, f"-{kind}")) for kind, size in SIZES.items()}
        list(_jpegs(CALIBRATION, folder / "calibration", SIZES["small"]))
        return cls(_weights(folder / "resnet18.pth"), photos, folder / "calibration", folder / "cache")


def _weights(path: Path) -> Path:
    import torch
    from torchvision.models import resnet18

    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), path)
    return path


def _jpegs(names: Iterable[str], folder: Path, size: tuple[int, int], suffix: str = "") -> Iterable[Path]:
    from skimage import data

    for name in names:
        path = folder / f"{name}{suffix}.jpg"
        photo = Image.fromarray(getattr(data, name)()).resize(size, Image.Resampling.LANCZOS)
        photo.save(path, quality=QUALITY)
        yield path
