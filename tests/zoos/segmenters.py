"""Torchvision's segmentation models with random weights that give pixels of an image different classes."""

from typing import Any

import torch
from torch import nn
from torchvision import models

from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec
from pthserve.planning.crops import sample_images

HEAVY = frozenset(("deeplabv3_resnet50", "deeplabv3_resnet101", "fcn_resnet101"))
"""Models whose parts others have, and whose passes take long: they are left to the long tests."""
SPREAD = 3.0
"""Standard deviation of the scores of a class over the places of an image."""


def segmenter(name: str, *, classes: int = 5, seed: int = 0, **kwargs: Any) -> nn.Module:
    """The segmentation model called `name`, whose scores differ from place to place."""
    torch.manual_seed(seed)
    model: Any = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes, **kwargs)
    # Normalisations with the statistics of photos: else features hardly vary, or grow with each layer.
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    photos = torch.from_numpy(normalise(sample_images(Spec(resize=192, crop=(192, 192))), Spec()))
    with torch.no_grad():
        model.train()(photos)
        model.eval()
        scores = model(photos)["out"]
        for head in heads(model):
            assert isinstance(head.bias, nn.Parameter)
            deviation = scores.std((0, 2, 3))
            head.weight.mul_((SPREAD / deviation).view(-1, 1, 1, 1))
            head.bias.zero_()
        heads(model)[0].bias -= model(photos)["out"].mean((0, 2, 3))
    return model


def heads(model: Any) -> list[nn.Conv2d]:
    """The convolutions whose sum, resized, is the scores."""
    if hasattr(model.classifier, "low_classifier"):
        return [model.classifier.low_classifier, model.classifier.high_classifier]
    return [model.classifier[4]]
