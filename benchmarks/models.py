"""Models: what else is measured beside the ResNet-18: trained models, and a ResNet-50 for comparison.

The trained ones say what int8 brings where it must agree with fp32: a model with random weights gives every
class nearly the same probability, so that any quantisation agrees. How long a pass takes does not depend on
the weights.
"""

import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

Precision = Literal["fp32", "auto", "int8"]
"""What this service is measured at."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "auto", "int8")

ROOT = Path(__file__).parents[1]
DEMO, DIGITS, RESNET50 = "ImageNet demo", "digits", "ResNet-50"
OTHERS = (DEMO, DIGITS, RESNET50)
PARTS = 8
"""Parts of each photo for calibration: int8 needs many images, and the package has few photos in colour."""
CALIBRATION = ("astronaut", "cat", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "rocket")
"""Of scikit-image's photos."""
QUALITY = 90


@dataclass(frozen=True, slots=True)
class Packed:
    """A model, packed at each precision.

    weights: its weights file. packs: by precision; int8 is not there where it was refused, for the reason
    `refused`. photos: images that it is sent.
    """

    weights: Path
    packs: Mapping[Precision, Path]
    photos: list[Path] = field(default_factory=list)
    refused: str = ""


def packed(source: Path, weights: Path, calibration: Path | None, photos: list[Path], folder: Path) -> Packed:
    """Pack the model in `source` into `folder`, which is made: at fp32, which `auto` has too, and at int8.

    calibration: None packs nothing at int8, which takes minutes.
    """
    folder.mkdir()
    plain = folder / "packed"
    pack(source, plain, "--precision", "fp32")
    packs: dict[Precision, Path] = {"fp32": plain, "auto": plain}
    if calibration is None:
        return Packed(weights, packs, photos, "not packed in a quick run")
    try:
        pack(source, folder / "int8", "--precision", "int8", "--calibration", str(calibration))
    except subprocess.CalledProcessError as error:
        return Packed(weights, packs, photos, error.stderr.strip().splitlines()[-1])
    return Packed(weights, {**packs, "int8": folder / "int8"}, photos)


def others(folder: Path, photos: list[Path], calibration: Path | None) -> dict[str, Packed]:
    """The other models by name, in folders below `folder`.

    photos: for those that know photos. calibration: folder of such, or None; see `packed`.
    """
    demo, digits = ROOT / "weights/imagenet", ROOT / "weights/digits"
    numbers = folder / "digits-calibration"
    numbers.mkdir()
    list(_digits(numbers))
    resnet50 = random_weights("resnet50", folder / "resnet50.pth")
    return {
        DEMO: packed(demo, demo / "efficientnet-lite0.pth", calibration, photos, folder / "demo"),
        DIGITS: packed(
            digits, digits / "digits.pth", numbers, sorted((digits / "golden").iterdir()), folder / "digits"
        ),
        RESNET50: packed(resnet50, resnet50, calibration, photos, folder / "resnet50"),
    }


def pack(source: Path, folder: Path, *options: str) -> None:
    """Run `pthserve pack`; raises CalledProcessError where it refuses, with what it says as `stderr`."""
    argv = [sys.executable, "-m", "pthserve", "pack", str(source), "-o", str(folder), *options]
    subprocess.run(argv, check=True, capture_output=True, text=True)


def random_weights(architecture: str, path: Path) -> Path:
    """Write the weights of a torchvision architecture, random from a fixed seed, to `path`."""
    import torch
    from torchvision import models

    torch.manual_seed(0)
    classifier = architecture in models.list_models(module=models)
    backbone = {} if classifier else {"weights_backbone": None}
    torch.save(models.get_model(architecture, weights=None, **backbone).state_dict(), path)
    return path


def jpegs(names: Iterable[str], folder: Path, size: tuple[int, int], suffix: str = "") -> Iterable[Path]:
    """Write scikit-image's photos of these names as JPEGs of `size`, width and height in pixels."""
    from skimage import data

    for name in names:
        path = folder / f"{name}{suffix}.jpg"
        photo = Image.fromarray(getattr(data, name)()).resize(size, Image.Resampling.LANCZOS)
        photo.save(path, quality=QUALITY)
        yield path


def parts(names: Iterable[str], folder: Path, size: tuple[int, int]) -> Iterable[Path]:
    """Write PARTS parts of each of scikit-image's photos of these names, as JPEGs of `size`."""
    from skimage import data

    draw = np.random.default_rng(0)
    for name in names:
        photo = Image.fromarray(getattr(data, name)())
        for number in range(PARTS):
            width, height = (int(side * draw.uniform(0.5, 1)) for side in photo.size)
            left, top = (
                int(draw.integers(side - part + 1))
                for side, part in zip(photo.size, (width, height), strict=True)
            )
            path = folder / f"{name}-{number}.jpg"
            part = photo.crop((left, top, left + width, top + height))
            part.resize(size, Image.Resampling.LANCZOS).save(path, quality=QUALITY)
            yield path


def _digits(folder: Path) -> Iterable[Path]:
    """Write scikit-learn's handwritten digits as PNGs of 8x8 pixels of grey, as in training."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    for number, image in enumerate(load_digits().images[:300]):
        path = folder / f"{number}.png"
        Image.fromarray((image * (255 / 16)).round().astype("uint8")).save(path)
        yield path
