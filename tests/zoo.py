"""A model of a user's own, small and quick: `tests.zoo:tiny` in a card."""

from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from pthserve.images.preprocess import crop, normalise
from pthserve.images.spec import Spec

from .linear import noise, png

CODE = "tests.zoo"
"""What must be allowed, with --allow-code."""
LABELS = ("ant", "bee", "cat", "dog", "snöwl")
SPEC = Spec(resize=40, crop=(32, 32))


def tiny() -> nn.Module:
    """A network of one of each: convolution, batch normalisation, pooling, a linear head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, len(LABELS)),
    )


def tiny_folder(folder: Path, seed: int = 0) -> Path:
    """`folder` with a `tiny`'s weights, a card, and two golden images with the answers of fp32 PyTorch."""
    images = {f"golden/{number}.png": png(noise(number)) for number in (1, 2)}
    pixels = np.stack([crop(data, SPEC, max_pixels=2**20) for data in images.values()])
    torch.manual_seed(seed)
    module = tiny().eval()
    with torch.no_grad():
        tensors = torch.from_numpy(normalise(pixels, SPEC))
        scale = 8 / module(tensors).std()  # so that the best class is clearly the best
        for parameter in module[-1].parameters():
            parameter.mul_(scale)
        answers = module(tensors).softmax(1).max(1)
    torch.save(module.state_dict(), folder / "tiny.pth")
    card = {
        "name": "zoo",
        "version": str(seed),
        "architecture": "tests.zoo:tiny",
        "labels": list(LABELS),
        "preprocessing": {"resize": SPEC.resize, "crop": SPEC.crop[0]},
        "golden": [
            {"image": name, "class_index": int(index), "probability": round(float(value), 6)}
            for name, value, index in zip(images, *answers, strict=True)
        ],
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(card, allow_unicode=True))
    (folder / "golden").mkdir(exist_ok=True)
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return folder
