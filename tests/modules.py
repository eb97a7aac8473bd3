"""Models with weights of a sane scale: each class gets its turn, and no activation explodes or dies."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from pthserve.images.spec import Spec

if TYPE_CHECKING:
    from torch import nn

SEED = 20

Build = Callable[[str, Spec], "nn.Module"]


def _settle(module: "nn.Module", spec: Spec) -> "nn.Module":
    """He initialisation, batch statistics from images of noise, logits with a standard deviation of 2."""
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.1)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.momentum = 1.0
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    noise = (torch.rand(8, *spec.tensor_shape) - mean) / std
    with torch.no_grad():
        module.train()(noise)
        scale = 2 / module.eval()(noise).std()
        for parameter in layers[-1].parameters():
            parameter.mul_(scale)
    return module


def tiny(spec: Spec) -> "nn.Module":
    """A network of one of each: convolution, batch normalisation, pooling, a linear head of 7 classes."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(spec.channels, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 7),
    )


@pytest.fixture(scope="session")
def build() -> Build:
    """Name (`tiny`, or one of torchvision's) and spec to a module in eval mode."""

    import torch
    import torchvision

    @cache
    def _build(name: str, spec: Spec) -> "nn.Module":
        torch.manual_seed(SEED)
        if name == "tiny":
            return _settle(tiny(spec), spec)
        quick = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
        return _settle(torchvision.models.get_model(name, num_classes=100, **quick), spec)

    return _build


@pytest.fixture(scope="session")
def pixels() -> Callable[[Spec, int], NDArray[np.uint8]]:
    """Spec and number to images of noise."""

    def _pixels(spec: Spec, count: int) -> NDArray[np.uint8]:
        return np.random.default_rng(SEED).integers(0, 256, (count, *spec.image_shape), np.uint8)

    return _pixels
