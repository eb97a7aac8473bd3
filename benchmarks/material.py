"""Material: the weights, photos and calibration images that a run needs, made on the fly."""

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

Precision = Literal["fp32", "auto", "int8"]
"""What this service is measured at."""

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
    packs: it packed, by precision. photos: JPEGs by the keys of SIZES. cache: for compiled graphs.
    """

    weights: Path
    packs: dict[Precision, Path]
    photos: dict[str, list[Path]]
    cache: Path

    @classmethod
    def make(cls, folder: Path) -> "Material":
        """All of it, in `folder`."""
        for name in ("calibration", "cache"):
            (folder / name).mkdir()
        photos = {kind: list(_jpegs(PHOTOS, folder, size, f"-{kind}")) for kind, size in SIZES.items()}
        list(_jpegs(CALIBRATION, folder / "calibration", SIZES["small"]))
        weights = _weights(folder / "resnet18.pth")
        plain = _packed(weights, folder / "packed", "--precision", "fp32")
        int8 = _packed(
            *(weights, folder / "packed-int8", "--precision", "int8"),
            *("--calibration", str(folder / "calibration")),
        )
        return cls(weights, {"fp32": plain, "auto": plain, "int8": int8}, photos, folder / "cache")


def _packed(weights: Path, folder: Path, *options: str) -> Path:
    argv = [sys.executable, "-m", "pthserve", "pack", str(weights), "-o", str(folder), *options]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return folder


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
