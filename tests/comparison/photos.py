"""Photos as files, none of them square, and what is normalised as ImageNet's are."""

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import transforms

from pthserve.images.spec import Spec

from ..images.pictures import photo

IMAGENET = transforms.Normalize(Spec().mean, Spec().std)


def photos(folder: Path, *names: str) -> list[Path]:
    """JPEG files of the photos called `names`."""
    made = []
    for name in names or ("astronaut", "chelsea", "coffee"):
        image = photo(name)
        made.append(folder / f"{name}.jpg")
        image.crop((0, 0, image.width - 40, image.height)).save(made[-1], quality=92)
    return made


def turned(path: Path) -> Path:
    """The photo at `path` in a file whose EXIF orientation says that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    out = path.with_name(f"turned-{path.name}")
    Image.open(path).save(out, exif=exif, quality=92)
    return out


def opened(path: Path | str) -> Image.Image:
    """The image in the file, in RGB."""
    return Image.open(path).convert("RGB")


def array(value: object) -> np.ndarray:
    """`value`, a tensor, as float32."""
    return np.asarray(value, np.float32)
