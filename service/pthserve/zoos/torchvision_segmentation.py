"""Torchvision's segmentation models: from a state dict to the builder, and to the head that the file has.

A file has the names of one kind of head, whichever builder its backbone is of: people replace the head of one
builder with that of another. Auxiliary classifiers serve training alone, and are left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from pthserve.certainty import Inferred, Origin
from pthserve.errors import ArchitectureError
from pthserve.images.spec import Spec
from pthserve.tasks.segmentation import SegmentationTask
from pthserve.text import quoted
from pthserve.zoos.base import Architecture, Choice, Source, described, put, shapes
from pthserve.zoos.bounded_build import BoundedBuild
from pthserve.zoos.first_layer import FirstLayer
from pthserve.zoos.layout import Shape
from pthserve.zoos.one_network import difference, one_place

_CALLS = 50_000
"""Most calls of PyTorch that it takes to build one."""
_MOST_CLASSES = 2**16
"""Classes that a class map may have."""
_AUXILIARY = "aux_classifier."


@dataclass(frozen=True, slots=True)
class _Head:
    """A kind of head.

    mark: the end of a name of a convolution that each has, and none of those behind it in `_HEADS`. classes:
    the end of the name whose first dimension counts classes. builders: which have it. others: builders whose
    head is replaced with it. made: the head, of its channels and classes; None where it is not put elsewhere.
    """

    name: str
    mark: str
    classes: str
    builders: tuple[str, ...]
    others: tuple[str, ...] = ()
    made: Callable[[int, int], nn.Module] | None = None


_HEADS = (
    _Head(
        "LRASPPHead",
        "classifier.low_classifier.weight",
        "classifier.low_classifier.weight",
        ("lraspp_mobilenet_v3_large",),
    ),
    _Head(
        "DeepLabHead",
        "classifier.0.convs.0.0.weight",
        "classifier.4.weight",
        ("deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large"),
        ("fcn_resnet50", "fcn_resnet101"),
        DeepLabHead,
    ),
    _Head(
        "FCNHead",
        "classifier.4.weight",
        "classifier.4.weight",
        ("fcn_resnet50", "fcn_resnet101"),
        ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101"),
        FCNHead,
    ),
)
"""The first whose mark a file has is its head."""

BUILDERS: tuple[str, ...] = tuple(name for head in _HEADS for name in head.builders)
"""Every segmentation model that torchvision builds."""


class TorchvisionSegmentation:
    """Segmentation models of torchvision; see `Zoo`."""

    def claims(self, source: Source) -> bool:
        """Whether the user names one, or the names in the state dict are one's."""
        if source.architecture:
            return source.architecture.rpartition("torchvision/")[2] in BUILDERS
        return bool(_places(source.state_dict))

    def build(self, source: Source) -> Architecture:
        """The model that the state dict fits; see `Zoo`."""
        places = _places(source.state_dict)
        prefix = one_place(places, source)
        head = places[prefix]
        names = {
            key.removeprefix(prefix): key
            for key in source.state_dict
            if key.startswith(prefix) and not key.startswith(prefix + _AUXILIARY)
        }
        known = shapes({name: source.state_dict[key] for name, key in names.items()})
        if known[head.classes][0] > _MOST_CLASSES:
            raise ArchitectureError(f"the model has more than {_MOST_CLASSES} classes")
        name, model, choices, inferred = _chosen(source, head, known)
        put(model, names, source.state_dict)
        classes, ends = _classes(known[head.classes][0])
        spec = _spec(name)
        return described(
            name,
            Segmenter(model),
            num_classes=classes,
            prefix=prefix,
            input_size=spec.crop[0],
            inferred=(inferred, *ends, *(choice.inferred for choice in choices)),
            spec=spec,
            ignored=tuple(key for key in source.state_dict if key not in names.values()),
            choices=choices,
            task=SegmentationTask(classes),
            usual_labels=_categories(name, classes),
        )


class Segmenter(nn.Module):
    """float32 (n, channels, height, width), resized and normalised, to (n, outputs); see `Scores.read`.

    The scores are those before the model resizes them to the size of its image: that has a sixty-fourth of
    the numbers, and is left to whoever resizes them to the image as sent. A model with one output, whose
    sigmoid is the probability of the foreground, has a background with a score of 0 before it: the softmax
    of both is that sigmoid.

    model: of torchvision, without its auxiliary classifier.
    """

    varies = True
    """Whether what is computed follows from the image, so that no recording of it can be replayed: its size
    does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = model.backbone
        self.classifier: nn.Module = model.classifier

    def forward(self, images: Tensor) -> Tensor:
        """The scores of each class at each place, after their numbers of rows and columns and the image's."""
        features = self.backbone(images)
        # LRASPP's head looks at features of two sizes, the others at one.
        scores: Tensor = self.classifier(features.get("out", features))
        if scores.shape[1] == 1:
            scores = torch.cat((torch.zeros_like(scores), scores), 1)
        # As tensors, for which a trace has the sizes of each image, and not of the one that it saw.
        sizes = torch.cat([torch._shape_as_tensor(one)[2:] for one in (scores, images)]).to(scores)
        return torch.cat((sizes.expand(scores.shape[0], -1), scores.flatten(1)), 1)


def _places(state_dict: Mapping[str, Tensor]) -> dict[str, _Head]:
    """Where segmentation models are: the prefix of each to its head."""
    places: dict[str, _Head] = {}
    for head in _HEADS:
        for key, tensor in state_dict.items():
            prefix = key.removesuffix(head.mark)
            if prefix == key or prefix[-1:] not in ("", ".") or tensor.ndim != 4:
                continue  # of a classifier, this would be a linear layer
            if prefix + head.classes in state_dict and any(
                name.startswith(f"{prefix}backbone.") for name in state_dict
            ):
                places.setdefault(prefix, head)
    return places


def _chosen(
    source: Source, head: _Head, known: Mapping[str, Shape]
) -> tuple[str, nn.Module, tuple[Choice, ...], Inferred]:
    """The builder whose backbone has these names and shapes, its module without weights but with the file's
    head, what was assumed of it, and what the choice rests on."""
    possible = head.builders + head.others
    stated = (source.architecture or "").rpartition("torchvision/")[2]
    if stated and stated not in possible:
        raise ArchitectureError(f"the weights do not fit {stated}: their head is of the kind {head.name}")
    differences: dict[str, str] = {}
    for name in (stated,) if stated else possible:
        model, choices = _blank(name, head, known, source)
        differences[name] = difference(model, known)
        if not differences[name]:
            origin = Origin.CARD if stated else Origin.FILE
            words = name if name in head.builders else f"{name}, with the head {head.name}"
            return name, model, choices, Inferred("architecture", words, origin, f"architecture: {name}")
    if stated:
        raise ArchitectureError(f"the weights do not fit {stated}: {differences[stated]}")
    closest = min(differences, key=lambda one: len(differences[one]))
    raise ArchitectureError(
        f"the state dict is a segmentation model's, and fits none of torchvision's ({', '.join(possible)}); "
        f"{closest} is the closest: {differences[closest]}. Of segmentation models, "
        "pthserve runs torchvision's alone"
    )


def _blank(
    name: str, head: _Head, known: Mapping[str, Shape], source: Source
) -> tuple[nn.Module, tuple[Choice, ...]]:
    """The model without weights, with the head and the first layer that the file has, and what was assumed of
    that layer."""
    classes = known[head.classes][0]
    arguments: dict[str, Any] = {"num_classes": classes, **source.kwargs, "aux_loss": False}
    try:
        with torch.device("meta"), BoundedBuild(_CALLS, "segmentation model of torchvision"):
            model: Any = models.get_model(name, weights=None, weights_backbone=None, **arguments)
            if name not in head.builders:
                assert head.made is not None
                first = next(layer for layer in model.classifier.modules() if isinstance(layer, nn.Conv2d))
                model.classifier = head.made(first.in_channels, classes)
            layer = FirstLayer(model.backbone)
            weight, bias = (f"backbone.{layer.path}.{kind}" for kind in ("weight", "bias"))
            choice = layer.fit(known[weight], bias=bias in known) if weight in known else None
    except Exception as error:  # torchvision checks few of its arguments, and fails on others as it may
        raise ArchitectureError(
            f"{name} cannot be built with {quoted(dict(source.kwargs))}: {quoted(error)}"
        ) from error
    return model, () if choice is None else (choice,)


def _classes(outputs: int) -> tuple[int, tuple[Inferred, ...]]:
    """How many classes a model with so many outputs has, and what of it is assumed."""
    if outputs > 1:
        return outputs, ()
    value = "one, whose sigmoid is the probability of class 1; class 0 is the background"
    return 2, (Inferred("output", value, Origin.ASSUMED),)


def _spec(name: str) -> Spec:
    """The preprocessing of torchvision's own weights: `SemanticSegmentation`."""
    preset = models.get_model_weights(name).DEFAULT.transforms()
    return Spec.uncropped(preset.resize_size[0], mean=tuple(preset.mean), std=tuple(preset.std), assumed=True)


def _categories(name: str, classes: int) -> tuple[str, ...] | None:
    """The categories of torchvision's own weights, where there are as many."""
    names = tuple(models.get_model_weights(name).DEFAULT.meta["categories"])
    return names if len(names) == classes else None
