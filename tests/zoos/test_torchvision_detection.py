"""Torchvision's detectors: recognised by names and shapes, and computing what torchvision computes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.transforms.functional import to_tensor

from pthserve.certainty import Origin
from pthserve.errors import AmbiguousArchitecture, ArchitectureError
from pthserve.tasks.detection import DetectionTask
from pthserve.tasks.objects import Detections
from pthserve.zoos import architecture
from pthserve.zoos.base import Architecture
from pthserve.zoos.torchvision_detection import BUILDERS

from ..shared import with_long
from .detectors import HEAVY, detector, sized
from .test_torchvision import pictures

PREFIXES = ("", "module.", "model.")
TWINS = ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn")
"""Builders with the same names and shapes, which resize images to other sizes."""


def state_dict(name: str, prefix: str = "", **kwargs: Any) -> dict[str, Tensor]:
    """Tensors with the names and shapes of the builder's."""
    with torch.device("meta"):
        module: Any = models.get_model(name, weights=None, weights_backbone=None, **kwargs)
    return zeros(module, prefix)


def zeros(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {
        f"{prefix}{key}": torch.zeros(tensor.shape, dtype=tensor.dtype)
        for key, tensor in module.state_dict().items()
    }


def test_every_detector_of_torchvision_is_known() -> None:
    assert set(BUILDERS) == set(models.list_models(module=models.detection))


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_each_is_recognised_whatever_is_around_it_and_however_many_classes_it_has(name: str) -> None:
    for prefix, classes in zip(PREFIXES, (2, 7, 91), strict=True):
        weights = state_dict(name, prefix, num_classes=classes)
        if name in TWINS:
            with pytest.raises(AmbiguousArchitecture) as error:
                architecture.build(weights)
            assert error.value.choices == tuple((twin,) for twin in TWINS)
            found = architecture.build(weights, path=Path(f"{name}-907ea3f9.pth"))
        else:
            found = architecture.build(weights)
        assert (found.name, found.num_classes, found.prefix) == (name, classes, prefix)
        assert found.inferred[0].origin is Origin.FILE
        assert isinstance(found.task, DetectionTask)
        assert found.task.table.mask == (28 if name.startswith("mask") else 0)
        assert found.task.table.keypoints == (17 if name.startswith("keypoint") else 0)
        assert (found.usual_labels is None) == (classes != (2 if name.startswith("keypoint") else 91))


@pytest.mark.slow
@pytest.mark.parametrize("twin", TWINS)
def test_twins_are_told_apart_by_whoever_states_one(twin: str) -> None:
    weights = state_dict(TWINS[0], num_classes=4)
    sizes = {TWINS[0]: 800, TWINS[1]: 320}
    for stated in (
        architecture.build(weights, twin),
        architecture.build(weights, metadata={"args": {"arch": twin}}),
        architecture.build(state_dict(TWINS[0], f"{twin}.", num_classes=4)),
    ):
        assert (stated.name, stated.spec and stated.spec.resize) == (twin, sizes[twin])


def test_heads_may_be_replaced_as_the_tutorial_replaces_them() -> None:
    with torch.device("meta"):
        model: Any = models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        model.roi_heads.box_predictor = FastRCNNPredictor(1024, 3)
        model.roi_heads.mask_predictor = MaskRCNNPredictor(256, 128, 3)
    found = architecture.build(zeros(model))
    assert (found.name, found.num_classes) == ("maskrcnn_resnet50_fpn", 3)


def test_the_number_of_keypoints_is_the_file_s() -> None:
    found = architecture.build(state_dict("keypointrcnn_resnet50_fpn", num_classes=2, num_keypoints=9))
    assert isinstance(found.task, DetectionTask)
    assert (found.task.table.keypoints, found.task.table.keypoint_names) == (9, ())


@pytest.mark.slow
def test_names_that_older_versions_saved_are_read() -> None:
    for name, old in (
        (
            "maskrcnn_resnet50_fpn",
            {
                r"(_blocks\.\d)\.0\.": r"\1.",
                r"rpn\.head\.conv\.0\.0\.": "rpn.head.conv.",
                r"mask_head\.(\d)\.0\.": lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}.",
            },
        ),
        (
            "retinanet_resnet50_fpn",
            {
                r"(_blocks\.\d)\.0\.": r"\1.",
                r"_head\.conv\.(\d)\.0\.": lambda found: f"_head.conv.{2 * int(found[1])}.",
            },
        ),
    ):
        weights = state_dict(name, num_classes=4)
        renamed = {}
        for key, tensor in weights.items():
            spelling = key
            for pattern, new in old.items():
                spelling = re.sub(pattern, new, spelling)  # type: ignore[call-overload]
            renamed[spelling] = tensor
        assert renamed.keys() != weights.keys()
        assert architecture.build(renamed).name == name


@pytest.mark.slow
def test_frozen_normalisations_have_torchvision_s_epsilon_and_the_user_is_told() -> None:
    weights = state_dict("fasterrcnn_resnet50_fpn", num_classes=4)
    assert epsilons(architecture.build(weights)) == {1e-5}
    frozen = {key: tensor for key, tensor in weights.items() if not key.endswith("num_batches_tracked")}
    found = architecture.build(frozen)
    assert epsilons(found) == {0.0}
    assert [one.uncertain for one in found.inferred] == [False, True]


def epsilons(found: Architecture) -> set[float]:
    assert found.module is not None
    return {layer.eps for layer in found.module.modules() if isinstance(layer, nn.BatchNorm2d)}


@pytest.mark.slow
def test_of_a_detector_and_its_moving_average_the_average_is_taken() -> None:
    once = state_dict("ssdlite320_mobilenet_v3_large", "model.", num_classes=4)
    average = state_dict("ssdlite320_mobilenet_v3_large", "ema.", num_classes=4)
    assert architecture.build({**once, **average}).prefix == "ema."
    other = state_dict("ssdlite320_mobilenet_v3_large", "other.", num_classes=4)
    with pytest.raises(ArchitectureError, match="several networks"):
        architecture.build({**once, **other})


@pytest.mark.slow
def test_a_detector_that_torchvision_does_not_build_is_refused_with_what_differs() -> None:
    weights = state_dict("fasterrcnn_resnet50_fpn", num_classes=4)
    for change, message in (
        (
            {"rpn.head.cls_logits.weight": torch.zeros(5, 256, 1, 1)},
            "rpn.head.cls_logits.weight is 5x256x1x1",
        ),
        ({"roi_heads.extra.weight": torch.zeros(1)}, "not expected roi_heads.extra.weight"),
    ):
        with pytest.raises(ArchitectureError, match=re.escape(message)) as error:
            architecture.build({**weights, **change})
        assert "architecture: package.module:callable" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_large", "vgg16"])
def test_a_classifier_is_never_taken_for_a_detector(name: str) -> None:
    for prefix in ("", "backbone."):
        weights: Mapping[str, Tensor] = state_dict_of_classifier(name, prefix)
        assert architecture.build(weights).task is None


def state_dict_of_classifier(name: str, prefix: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return zeros(models.get_model(name, weights=None, num_classes=4), prefix)


@pytest.mark.slow
@pytest.mark.parametrize("name", with_long(BUILDERS, HEAVY))
def test_what_is_computed_is_what_torchvision_computes(name: str) -> None:
    """Of the very tensor that torchvision's transform gives: see tests/images/test_fractional.py for that."""
    model: Any = detector(name, **sized(name))
    found = architecture.build(model.state_dict(), name, sized(name))
    assert found.module is not None
    assert isinstance(found.task, DetectionTask)
    for image in pictures():
        tensor = to_tensor(image)
        with torch.inference_mode():
            (expected,) = model([tensor])
            (resized,) = model.transform([tensor])[0].tensors
            height, width = model.transform([tensor])[0].image_sizes[0]
            row = found.module(resized[None, :, :height, :width])[0].numpy()
        assert len(expected["scores"]) > 3, "a test without objects proves nothing"
        compare(found.task.table.read(row, ("",) * 5, image.size), expected, image)


def compare(found: Detections, expected: Mapping[str, Tensor], image: Image.Image) -> None:
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=0.001)
    np.testing.assert_array_equal(found.scores, expected["scores"])
    assert found.class_indices.tolist() == expected["labels"].tolist()
    if found.keypoints is not None:
        np.testing.assert_allclose(found.keypoints[..., :2], expected["keypoints"][..., :2], atol=0.001)
        np.testing.assert_array_equal(found.keypoints[..., 2], expected["keypoints_scores"])
    if found.has_masks:
        masks = expected["masks"][:, 0].numpy()
        ours = np.stack([found.mask(number) for number in range(len(found))])
        assert ours.shape == (len(found), *image.size[::-1])
        assert not (ours != (masks >= 0.5))[abs(masks - 0.5) > 1e-4].any()
