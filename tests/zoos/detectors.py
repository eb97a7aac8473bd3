"""Torchvision's detectors with random weights that find something."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec
from pthserve.planning.crops import sample_images

HEAVY = frozenset(("maskrcnn_resnet50_fpn_v2",))
"""Models whose parts others have, and whose passes take long: they are left to the long tests."""
SMALL = {"min_size": 160, "max_size": 240}
"""Arguments that keep a forward pass short; the SSDs have a size of their own."""

SPEC = Spec(resize=(300, 300), crop=(300, 300))
PHOTOS = sample_images(SPEC)[::3]

SPREAD = 0.7
"""Standard deviation of the logits of classes."""


def detector(name: str, *, classes: int = 5, seed: int = 0, **kwargs: Any) -> nn.Module:
    """The detector called `name`, whose scores are spread between 0 and 1."""
    torch.manual_seed(seed)
    model: Any = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes, **kwargs)
    # Normalisations with the statistics of photos: else features hardly vary, and rounding decides.
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        model.backbone.train()(torch.from_numpy(normalise(PHOTOS, SPEC)))
    model.eval()
    heads = [
        layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and layer.bias is not None
        and ("cls_" in path or "mask_fcn_logits" in path or "classification_head.module_list" in path)
    ]
    hooks = [layer.register_forward_hook(_spread) for layer in heads]
    with torch.no_grad():
        model([torch.from_numpy(PHOTOS[0]).permute(2, 0, 1) / 255])
    for hook in hooks:
        hook.remove()
    return model


def _spread(layer: nn.Module, _: Any, output: Tensor) -> Tensor | None:
    """Scale the layer so that its outputs have SPREAD, the first time that it has any."""
    if getattr(layer, "spread", False) or output.numel() < 2:
        return None
    layer.spread = True  # type: ignore[assignment]
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    before = layer.bias.view(*([-1] if output.ndim == 2 else [-1, 1, 1]))
    scale = SPREAD / (output - before).std()
    layer.weight.mul_(scale)
    layer.bias.zero_()
    return (output - before) * scale


def sized(name: str) -> dict[str, int]:
    """SMALL, where the builder takes it, and few objects where each has keypoints, which take long."""
    if name.startswith("ssd"):
        return {}
    return {**SMALL, "box_detections_per_img": 30} if name.startswith("keypointrcnn") else SMALL
