"""Folders of models of `nets`, the images they are asked, and what they say of them by PyTorch alone."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from .nets import SIDE, Net

MODULES = Path(__file__).parent
"""Where `nets` is, which the cards name."""

CARD: dict[str, Any] = {
    "name": "net",
    "weights": "model.pth",
    "architecture": "nets:Net",
    "preprocessing": {"resize": None, "crop": SIDE, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
}
"""The images are what the model sees, in values of 0 to 1."""


def state(seed: int, classes: int = 4) -> dict[str, torch.Tensor]:
    """Weights that tell the images of `image` apart."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = Net(classes).state_dict()
    found["head.weight"] *= 20
    return found


def card(folder: Path, **fields: Any) -> None:
    """Write the card of the model in `folder`: CARD, with other `fields`; those that are None left out."""
    values = {key: value for key, value in (CARD | fields).items() if value is not None}
    (folder / "model.yaml").write_text(yaml.safe_dump(values))


def make(folder: Path, **fields: Any) -> Path:
    """A folder with weights and a card."""
    folder.mkdir(exist_ok=True)
    card(folder, **fields)
    save(state(1), folder / "model.pth")
    return folder


def save(content: Any, file: Path) -> None:
    """Put weights in the place of `file`, in one step."""
    fresh = file.with_name("fresh")
    torch.save(content, fresh)
    fresh.replace(file)


@torch.no_grad()
def says(weights: dict[str, torch.Tensor], images: Sequence[bytes]) -> NDArray[np.float32]:
    """Probabilities, float32 (images, classes)."""
    module = Net(len(weights["head.bias"])).eval()
    module.load_state_dict(weights)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in images])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    found: NDArray[np.float32] = module(batch).softmax(1).numpy()
    return found


def image(seed: int, first: tuple[int, int, int] | None = None) -> bytes:
    """A PNG of a few coloured patches; first: the colour of its first pixel."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    pixels = patches.repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
    if first:
        pixels[0, 0] = first
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
