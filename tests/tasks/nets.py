"""Small networks, one a task, with weights of their own; `tests.tasks.nets:name` in a card."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from pthserve.images.preprocess import crop, normalise
from pthserve.images.spec import Spec

from ..linear import noise, png

CODE = "tests.tasks.nets"
"""What must be allowed, with --allow-code."""
SPEC = Spec(resize=40, crop=(32, 32))
IMAGES = {f"{number}.png": png(noise(number)) for number in range(3)}
"""Golden images, and what tests ask about."""


def net(outputs: int = 4) -> nn.Sequential:
    """Convolution, pooling and a linear layer: `outputs` numbers for an image."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, outputs)
    )


def with_sigmoid(outputs: int = 4) -> nn.Sequential:
    """As `net`, and its outputs are probabilities."""
    return nn.Sequential(*net(outputs), nn.Sigmoid())


class Functional(nn.Module):
    """As `with_sigmoid`, but the sigmoid is no module; one output comes without its dimension."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.layers = net(outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).sigmoid().squeeze(1)


def weights(outputs: int, seed: int = 0) -> nn.Sequential:
    """A `net` whose outputs are spread over -3 to 3."""
    torch.manual_seed(seed)
    module = net(outputs).eval()
    with torch.no_grad():
        given = module(tensors())
        module[-1].weight.mul_(2 / given.std(0, keepdim=True).T)
        module[-1].bias.sub_(module(tensors()).mean(0)).add_(torch.linspace(-1, 1, outputs))
    return module


def tensors() -> torch.Tensor:
    """The images as a network takes them."""
    pixels = np.stack([crop(data, SPEC, max_pixels=2**20) for data in IMAGES.values()])
    return torch.from_numpy(normalise(pixels, SPEC))


def reference(module: nn.Module) -> torch.Tensor:
    """What PyTorch computes for the images: float32 (3, outputs)."""
    with torch.no_grad():
        return module.eval()(tensors())


def folder(path: Path, module: nn.Module, architecture: str = "net", **card: Any) -> Path:
    """`path` with the weights of `module`, the images, and a card with these fields."""
    path.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), path / "net.pth")
    for name, data in IMAGES.items():
        (path / name).write_bytes(data)
    fields = {
        "name": "net",
        "architecture": f"{CODE}:{architecture}",
        "kwargs": {"outputs": len(reference(module)[0])},
        "preprocessing": {"resize": SPEC.resize, "crop": SPEC.crop[0]},
        **card,
    }
    (path / "model.yaml").write_text(yaml.safe_dump(fields))
    return path
