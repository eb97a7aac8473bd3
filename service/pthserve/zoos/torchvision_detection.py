"""Torchvision's detectors: from a state dict to the builder, its arguments and its heads.

Each builder of the family is built without memory, with the numbers of classes, keypoints and channels that
the file's heads have; the one that has the file's names and shapes is taken.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

from pthserve.certainty import Inferred, Origin
from pthserve.errors import AmbiguousArchitecture, ArchitectureError
from pthserve.images.spec import Spec
from pthserve.tasks.detection import DetectionTask
from pthserve.tasks.objects import Table
from pthserve.text import quoted
from pthserve.zoos import statements
from pthserve.zoos.base import Architecture, Source, described, put, shapes
from pthserve.zoos.bounded_build import BoundedBuild
from pthserve.zoos.detector import Detector
from pthserve.zoos.layout import Shape
from pthserve.zoos.one_network import difference, one_place

_CALLS = 50_000
"""Most calls of PyTorch that it takes to build one."""

_Renamed = tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...]
_RENAMED: _Renamed = (
    # Names that torchvision saved before 0.13: feature pyramids, and the heads of R-CNN.
    (re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), lambda old: f"{old[1]}.0.{old[2]}"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)$"), lambda old: f"{old[1]}.0.0.{old[2]}"),
    (
        re.compile(r"(roi_heads\.mask_head)\.mask_fcn(\d+)\.(weight|bias)$"),
        lambda old: f"{old[1]}.{int(old[2]) - 1}.0.{old[3]}",
    ),
)
_RETINANET_RENAMED: _Renamed = (
    (
        re.compile(r"(head\.(?:classification|regression)_head\.conv)\.([0246])\.(weight|bias)$"),
        lambda old: f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}",
    ),
)

_FROZEN_WITHOUT_EPS = (
    "fasterrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
)
"""Builders whose weights COCO_V1 have an epsilon of 0 in each batch normalisation. Those are frozen, which
leaves no counters in the file."""


@dataclass(frozen=True, slots=True)
class _Family:
    """Detectors with the same kinds of heads.

    mark: the end of a name that each has, and no other family. classes: the ends of the names whose first
    dimension counts classes, `anchors` times over. renamed: what older versions called otherwise.
    """

    builders: tuple[str, ...]
    mark: str
    classes: str
    anchors: int = 1
    renamed: _Renamed = ()


_FAMILIES = (
    _Family(
        (
            "fasterrcnn_resnet50_fpn",
            "fasterrcnn_resnet50_fpn_v2",
            "fasterrcnn_mobilenet_v3_large_fpn",
            "fasterrcnn_mobilenet_v3_large_320_fpn",
            "maskrcnn_resnet50_fpn",
            "maskrcnn_resnet50_fpn_v2",
            "keypointrcnn_resnet50_fpn",
        ),
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.cls_score.weight",
    ),
    _Family(
        ("fcos_resnet50_fpn",),
        "head.regression_head.bbox_ctrness.weight",
        "head.classification_head.cls_logits.weight",
    ),
    _Family(
        ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"),
        "head.classification_head.cls_logits.weight",
        "head.classification_head.cls_logits.weight",
        anchors=9,
        renamed=_RETINANET_RENAMED,
    ),
    _Family(
        ("ssd300_vgg16",),
        "head.classification_head.module_list.0.weight",
        "head.classification_head.module_list.0.weight",
        anchors=4,
    ),
    _Family(
        ("ssdlite320_mobilenet_v3_large",),
        "head.classification_head.module_list.0.1.weight",
        "head.classification_head.module_list.0.1.weight",
        anchors=6,
    ),
)
"""The first whose mark a file has is its family."""

BUILDERS: tuple[str, ...] = tuple(name for family in _FAMILIES for name in family.builders)
"""Every detector that torchvision builds."""

_MASK_CLASSES = "roi_heads.mask_predictor.mask_fcn_logits.weight"
_MASK_HIDDEN = "roi_heads.mask_predictor.conv5_mask.weight"
_KEYPOINTS = "roi_heads.keypoint_predictor.kps_score_lowres.weight"


class TorchvisionDetection:
    """Detectors of torchvision; see `Zoo`."""

    def claims(self, source: Source) -> bool:
        """Whether the user names one, or the names in the state dict are one's."""
        if source.architecture:
            return source.architecture.rpartition("torchvision/")[2] in BUILDERS
        return bool(_places(source.state_dict))

    def build(self, source: Source) -> Architecture:
        """The detector that the state dict fits; see `Zoo`."""
        prefix, family = _place(source)
        names = {
            _modern(key.removeprefix(prefix), family): key
            for key in source.state_dict
            if key.startswith(prefix)
        }
        known = shapes({name: source.state_dict[key] for name, key in names.items()})
        name, model, inferred = _chosen(source, family, known, prefix)
        put(model, names, source.state_dict)
        assumed = _batch_norm(name, model, names)
        task = _task(name, model, known)
        spec = _spec(model)
        return described(
            name,
            Detector(model, task.table),
            num_classes=_classes(family, known),
            prefix=prefix,
            input_size=spec.crop[0],
            inferred=(inferred, *assumed),
            spec=spec,
            ignored=tuple(key for key in source.state_dict if not key.startswith(prefix)),
            task=task,
            usual_labels=_categories(name, _classes(family, known)),
        )


def _modern(key: str, family: _Family) -> str:
    """The present spelling of a tensor's name that an older torchvision saved."""
    for old, new in (*_RENAMED, *family.renamed):
        key = old.sub(new, key)
    return key


def _places(state_dict: Mapping[str, Tensor]) -> dict[str, _Family]:
    """Where the networks of detectors are: the prefix of each to its family."""
    places: dict[str, _Family] = {}
    for family in _FAMILIES:
        for key in state_dict:
            prefix = key.removesuffix(family.mark)
            if prefix != key and prefix[-1:] in ("", ".") and _has_backbone(state_dict, prefix):
                places.setdefault(prefix, family)
    return places


def _has_backbone(state_dict: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(f"{prefix}backbone.") for key in state_dict)


def _place(source: Source) -> tuple[str, _Family]:
    """The one detector in the state dict; of several the moving average."""
    places = _places(source.state_dict)
    prefix = one_place(places, source)
    return prefix, places[prefix]


def _classes(family: _Family, known: Mapping[str, Shape]) -> int:
    return known[family.classes][0] // family.anchors


def _chosen(
    source: Source, family: _Family, known: Mapping[str, Shape], prefix: str
) -> tuple[str, nn.Module, Inferred]:
    """The builder of `family` that has these names and shapes, its module without weights, and what that
    rests on."""
    if source.architecture:
        name = source.architecture.rpartition("torchvision/")[2]
        module = _blank(name, family, known, source.kwargs)
        if differs := difference(module, known):
            raise ArchitectureError(f"the weights do not fit {name}: {differs}")
        return name, module, Inferred("architecture", name, Origin.CARD, f"architecture: {name}")
    differences: dict[str, str] = {}
    fitting: dict[str, nn.Module] = {}
    for name in _possible(family, known):
        module = _blank(name, family, known, source.kwargs)
        differences[name] = difference(module, known)
        if not differences[name]:
            fitting[name] = module
    if not fitting:
        closest = min(differences, key=lambda one: len(differences[one]))
        raise ArchitectureError(
            f"the state dict is a detector's, and fits none of torchvision's ({', '.join(family.builders)}); "
            f"{closest} is the closest: {differences[closest]}. Where its code is yours, name it in "
            "model.yaml, `architecture: package.module:callable`"
        )
    name, where = _settled(source, list(fitting), prefix)
    words = name + (f", as {where} says" if where else "")
    return name, fitting[name], Inferred("architecture", words, Origin.FILE, f"architecture: {name}")


def _possible(family: _Family, known: Mapping[str, Shape]) -> list[str]:
    """The builders of the family that have masks or keypoints where the file has them."""
    kind = "maskrcnn" if _MASK_CLASSES in known else "keypointrcnn" if _KEYPOINTS in known else ""
    return [
        name
        for name in family.builders
        if (name.startswith(kind) if kind else not name.startswith(("maskrcnn", "keypointrcnn")))
    ]


def _settled(source: Source, names: Sequence[str], prefix: str) -> tuple[str, str]:
    """Which of several builders with the same names and shapes, and where that is stated."""
    if len(names) == 1:
        return names[0], ""
    for statement in statements.architectures(source):
        if statement.name.rpartition("/")[2] in names:
            return statement.name.rpartition("/")[2], statement.where
    if within := [name for name in names if name in prefix.split(".")]:
        return within[0], ""
    if (named := statements.named_by_file(source, names)) and source.path is not None:
        return named, f"the name of {source.path.name}"
    raise AmbiguousArchitecture(
        "several detectors have these names and shapes, and compute differently, since they resize images "
        f"to other sizes: {', '.join(names)}; state the one that was trained, with "
        f"`--architecture {names[0]}` or in model.yaml with `architecture: {names[0]}`",
        [[name] for name in names],
    )


def _blank(name: str, family: _Family, known: Mapping[str, Shape], kwargs: Mapping[str, Any]) -> nn.Module:
    """The detector without weights, with heads as the file has them."""
    arguments: dict[str, Any] = {"num_classes": _classes(family, known), **kwargs}
    if name.startswith("keypointrcnn") and _KEYPOINTS in known:
        arguments.setdefault("num_keypoints", known[_KEYPOINTS][1])
    try:
        with torch.device("meta"), _Build():
            module: Any = models.get_model(name, weights=None, weights_backbone=None, **arguments)
            if name.startswith("maskrcnn") and {_MASK_HIDDEN, _MASK_CLASSES} <= known.keys():
                channels, hidden, *_ = known[_MASK_HIDDEN]
                module.roi_heads.mask_predictor = MaskRCNNPredictor(channels, hidden, known[_MASK_CLASSES][0])
    except Exception as error:  # torchvision checks few of its arguments, and fails on others as it may
        raise ArchitectureError(
            f"{name} cannot be built with {quoted(dict(kwargs))}: {quoted(error)}"
        ) from error
    return module  # type: ignore[no-any-return]


def _batch_norm(name: str, model: nn.Module, names: Mapping[str, str]) -> tuple[Inferred, ...]:
    """What nothing tells of normalisations that were frozen: their epsilon. It is assumed to be as in
    torchvision's own weights, from which such models descend."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    counted = any(key.endswith("num_batches_tracked") for key in names)
    if name not in _FROZEN_WITHOUT_EPS or counted or not layers:
        return ()
    for layer in layers:
        layer.eps = 0.0
    value = "frozen, with an epsilon of 0, as in torchvision's weights COCO_V1"
    return (Inferred("batch normalisation", value, Origin.ASSUMED),)


def _task(name: str, model: Any, known: Mapping[str, Shape]) -> DetectionTask:
    heads = getattr(model, "roi_heads", model)
    keypoints = known[_KEYPOINTS][1] if _KEYPOINTS in known else 0
    side = 0
    if _MASK_CLASSES in known:
        side = 2 * model.roi_heads.mask_roi_pool.output_size[0]
    usual = tuple(models.get_model_weights(name).DEFAULT.meta.get("keypoint_names", ()))
    return DetectionTask(
        Table(
            most=heads.detections_per_img,
            mask=side,
            keypoints=keypoints,
            keypoint_names=usual if len(usual) == keypoints else (),
        )
    )


def _spec(model: Any) -> Spec:
    """What the model's transform does, which `Detector` takes out of it."""
    transform = model.transform
    common: dict[str, Any] = {
        "mean": tuple(transform.image_mean),
        "std": tuple(transform.image_std),
        "antialias": False,
        "rounded": False,
        "assumed": True,
    }
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        return Spec(resize=(height, width), crop=(height, width), **common)
    return Spec.uncropped(transform.min_size[-1], longest=transform.max_size, **common)


def _categories(name: str, classes: int) -> tuple[str, ...] | None:
    """The categories of torchvision's own weights, where there are as many."""
    names = tuple(models.get_model_weights(name).DEFAULT.meta["categories"])
    return names if len(names) == classes else None


class _Build(BoundedBuild):
    """Builds on the meta device, but for anchors, which no state dict has."""

    def __init__(self) -> None:
        super().__init__(_CALLS, "detector of torchvision")

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Numbers that are computed with stay on the CPU."""
        if func in (torch.arange, torch.tensor, torch.as_tensor):
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)
