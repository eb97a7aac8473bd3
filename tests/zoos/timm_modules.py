"""timm's own modules with weights that matter, and their answers for real photos by timm's own transform."""

import random
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision.transforms.v2.functional import five_crop, resize

from pthserve.zoos.timm import TIMM

PHOTOS = [
    Path(str(path)) for path in files("pthserve.images.samples").iterdir() if path.name.endswith(".jpg")
]
"""Real photos, as they come with scikit-image."""
CLASSES = 7
SMALL, LARGE = 1e7, 3e7
"""Most parameters of an architecture that is drawn: for a quick test, and for the sweep of all families."""
IN_ATTENTION = 0.5
"""Scale of the weights of attention, beside norms over batches, as a share of that of the others."""
WIDE = 260
"""Most pixels a side of one that is drawn."""


def lively(module: nn.Module) -> nn.Module:
    """The module with weights that let each layer matter, in eval mode."""
    computed = {name for name, buffer in module.named_buffers() if "running" not in name}
    for name, tensor in module.state_dict().items():
        if name in computed or not tensor.is_floating_point():
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        numbers = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(numbers.abs() + 0.5)
        elif tensor.ndim > 1 and "pos" not in name and "token" not in name:
            tensor.copy_(numbers / max(tensor[0].numel(), 1) ** 0.5)
        elif name.endswith(("weight", "gamma")):
            tensor.copy_(1 + 0.2 * numbers)
        else:
            tensor.copy_(0.2 * numbers)
    return module.eval()


def photos(module: nn.Module, count: int) -> Tensor:
    """So many photos by timm's own transform."""
    transform = create_transform(**data_config(module.pretrained_cfg), is_training=False)
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in PHOTOS[:count]])


def settled(module: nn.Module) -> nn.Module:
    """The module with the statistics of photos in its norms over batches, so that no activation explodes.

    Those of noise are much too small for photos in some channels, and those of a few photos for others:
    GhostNetV3 and HaloNet then turn a difference of one in a million into one in ten, and in float32 their
    own answers are as far from those in float64.

    Nor do norms over batches bound the keys and queries of a single photo, of which attention takes the
    products: LeViT does the same for the most unusual photo, unless its attention has smaller weights.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    if norms:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "attn" in name:
                    parameter.mul_(IN_ATTENTION)
            module(with_parts(photos(module, len(PHOTOS))))
    return module.eval()


def with_parts(images: Tensor) -> Tensor:
    """The images, and the corners and the centre of each at their size."""
    size = list(images.shape[2:])
    parts = five_crop(images, [side // 2 for side in size])
    return torch.cat([images, *(resize(part, size) for part in parts)])


def made(name: str, **arguments: Any) -> nn.Module:
    """timm's own module."""
    module = lively(timm.create_model(name, pretrained=False, **{"num_classes": CLASSES, **arguments}))
    return module if arguments else settled(module)


def data_config(preset: Any) -> dict[str, Any]:
    """timm's own reading of a preset."""
    config: dict[str, Any] = resolve_data_config(pretrained_cfg=preset)  # type: ignore[no-untyped-call]
    return config


def answers(module: nn.Module, count: int) -> Tensor:
    """The logits of photos, by timm's own transform."""
    with torch.inference_mode():
        logits: Tensor = module(photos(module, count))
    return logits


def draw(seed: int, count: int, largest: float) -> list[str]:
    """So many architectures, one of each family before any of these gives a second one.

    largest: the most parameters. The sweep, with `LARGE`, draws the smallest of a family that has only larger
    ones; else the family is left out.
    """
    chance = random.Random(seed)
    families: dict[str, list[str]] = {}
    for name in TIMM.names():
        families.setdefault(timm.models._registry._model_to_module[name], []).append(name)
    for names in families.values():
        chance.shuffle(names)
    turns = sorted(families)
    chance.shuffle(turns)
    drawn: list[str] = []
    while len(drawn) < count:
        before = len(drawn)
        for family in turns:
            following = (
                _next(families[family], largest, alone=largest == LARGE and before == 0)
                if len(drawn) < count
                else None
            )
            if following:
                drawn.append(following)
        assert len(drawn) > before, "there are not so many"
    return drawn


def _next(names: list[str], largest: float, *, alone: bool) -> str | None:
    """The next that is not larger, taken from `names`; else the smallest, if `alone`."""
    sizes: dict[str, int] = {}
    for name in list(names):
        if TIMM.size(name) <= WIDE:
            sizes[name] = parameters(name)
            if sizes[name] <= largest:
                names.remove(name)
                return name
    if not alone:
        return None
    smallest = min(names, key=lambda name: sizes.get(name) or parameters(name))
    names.remove(smallest)
    print(f"{smallest}: the smallest of its family, though large")
    return smallest


def parameters(name: str) -> int:
    """How many the architecture has."""
    return sum(parameter.numel() for parameter in TIMM.blank(name).parameters())
