"""Torchvision's segmentation models: recognised by names and shapes, computing what torchvision computes."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision import models
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.transforms._presets import SemanticSegmentation

from pthserve.certainty import Origin
from pthserve.errors import ArchitectureError
from pthserve.images.preprocess import crop_image, normalise
from pthserve.images.spec import Spec
from pthserve.loading.load import build
from pthserve.planning.crops import samples
from pthserve.settings import Settings
from pthserve.tasks.class_maps import Scores
from pthserve.tasks.detection import DetectionTask
from pthserve.tasks.segmentation import SegmentationTask
from pthserve.zoos import architecture
from pthserve.zoos.base import Architecture
from pthserve.zoos.torchvision_segmentation import BUILDERS

from ..shared import with_long
from .segmenters import HEAVY, segmenter
from .test_torchvision_detection import state_dict, zeros

SIZES = {(640, 480): 520, (300, 500): 200, (1000, 300): 200}
"""(width, height) of photos, and to what their shorter sides are resized: less than usual, to save time."""


def bare(weights: dict[str, Tensor]) -> Any:
    return weights


def wrapped(weights: dict[str, Tensor]) -> Any:
    return {"state_dict": weights, "epoch": 3}


def parallel(weights: dict[str, Tensor]) -> Any:
    return {f"module.{key}": tensor for key, tensor in weights.items()}


def test_every_segmentation_model_of_torchvision_is_known() -> None:
    assert set(BUILDERS) == set(models.list_models(module=models.segmentation))


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("saved", [bare, wrapped, parallel])
def test_each_file_is_recognised_whatever_is_around_it(name: str, saved: Any, tmp_path: Path) -> None:
    """With other numbers of classes, and with and without an auxiliary classifier."""
    for classes, auxiliary in ((2, False), (7, True), (21, True)):
        arguments: dict[str, Any] = {} if name.startswith("lraspp") else {"aux_loss": auxiliary}
        weights = state_dict(name, num_classes=classes, **arguments)
        torch.save(saved(weights), tmp_path / "net.pth")
        built = build(str(tmp_path / "net.pth"), Settings())
        found = built.architecture
        assert (found.name, found.num_classes) == (name, classes)
        assert found.inferred[0].origin is Origin.FILE
        assert found.task == built.task == SegmentationTask(classes)
        assert (found.usual_labels is None) == (classes != 21)
        assert all("aux_classifier" in key for key in found.ignored)
        assert bool(found.ignored) == bool(arguments and auxiliary)
        assert built.spec.words().startswith("resize the shorter side to 520, bilinear, no crop")
        told = {one.subject: one.uncertain for one in built.inferred}
        assert told == {"architecture": False, "preprocessing": True, "task": False, "labels": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("builder", "head", "name", "words"),
    [
        ("fcn_resnet50", DeepLabHead(2048, 3), "deeplabv3_resnet50", "deeplabv3_resnet50"),
        ("deeplabv3_resnet101", FCNHead(2048, 3), "fcn_resnet101", "fcn_resnet101"),
        (
            "deeplabv3_mobilenet_v3_large",
            FCNHead(960, 3),
            "deeplabv3_mobilenet_v3_large",
            "deeplabv3_mobilenet_v3_large, with the head FCNHead",
        ),
    ],
)
def test_the_head_of_one_builder_may_be_another_s(
    builder: str, head: nn.Module, name: str, words: str
) -> None:
    with torch.device("meta"):
        model: Any = models.get_model(builder, weights=None, weights_backbone=None, aux_loss=True)
    model.classifier = head
    weights = zeros(model)  # the auxiliary classifier has 21 classes still
    found = architecture.build(weights)
    assert (found.name, found.num_classes, found.inferred[0].value) == (name, 3, words)
    assert architecture.build(weights, builder).num_classes == 3


@pytest.mark.slow
def test_one_output_is_a_foreground_and_the_user_is_told() -> None:
    model = segmenter("lraspp_mobilenet_v3_large", classes=1)
    found = architecture.build(model.state_dict())
    assert (found.num_classes, found.task) == (2, SegmentationTask(2))
    assert [one.subject for one in found.inferred if one.uncertain] == ["output"]
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = model(image)["out"][0, 0].sigmoid()
    scores = network(found, image)
    np.testing.assert_allclose(scores.softmax(0)[1], expected, atol=1e-5)
    assert 0 < (scores.argmax(0) == 1).float().mean() < 1


def test_grey_images_may_be_the_input() -> None:
    with torch.device("meta"):
        model: Any = models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3)
        model.backbone.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    found = architecture.build(zeros(model))
    assert found.channels == 1
    assert [choice.subject for choice in found.choices] == ["first layer"]
    assert found.inferred[-1].uncertain


def test_of_a_model_and_its_moving_average_the_average_is_taken() -> None:
    once, average, other = (
        state_dict("lraspp_mobilenet_v3_large", prefix, num_classes=4)
        for prefix in ("model.", "ema.", "other.")
    )
    assert architecture.build({**once, **average}).prefix == "ema."
    with pytest.raises(ArchitectureError, match="several networks"):
        architecture.build({**once, **other})


@pytest.mark.slow
def test_what_torchvision_does_not_build_is_refused_with_what_differs() -> None:
    weights = state_dict("fcn_resnet50", num_classes=4)
    with pytest.raises(ArchitectureError, match=re.escape("not expected classifier.extra.weight")):
        architecture.build({**weights, "classifier.extra.weight": torch.zeros(1)})
    with pytest.raises(ArchitectureError, match="their head is of the kind FCNHead"):
        architecture.build(weights, "lraspp_mobilenet_v3_large")
    with pytest.raises(ArchitectureError, match="do not fit fcn_resnet101"):
        architecture.build(weights, "fcn_resnet101")
    with pytest.raises(ArchitectureError, match="does not have the heads of fcn_resnet50"):
        architecture.build({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "fcn_resnet50")


@pytest.mark.slow
def test_classifiers_and_detectors_are_not_taken_for_segmentation_models() -> None:
    for name in ("resnet50", "mobilenet_v3_large", "vgg16"):
        for prefix in ("", "backbone."):
            with torch.device("meta"):
                weights = zeros(models.get_model(name, weights=None, num_classes=4), prefix)
            assert architecture.build(weights).task is None
    detector = architecture.build(state_dict("ssdlite320_mobilenet_v3_large", num_classes=4))
    assert isinstance(detector.task, DetectionTask)


def test_a_classifier_with_a_backbone_and_a_head_of_the_same_names_is_not_taken() -> None:
    with torch.device("meta"):
        model = nn.Module()
        model.backbone = models.resnet18(weights=None)
        model.classifier = nn.Sequential(
            nn.Linear(1000, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 3)
        )
    assert architecture.build(zeros(model)).task is None


def network(found: Architecture, images: Tensor) -> Tensor:
    """The scores of the one image at the size of the network's image."""
    assert found.module is not None
    assert isinstance(found.task, SegmentationTask)
    with torch.inference_mode():
        row = found.module(images)[0].numpy()
    return torch.from_numpy(Scores.read(row, found.task.classes).resized())


@pytest.mark.slow
@pytest.mark.parametrize("name", with_long(BUILDERS, HEAVY))
def test_what_is_computed_is_what_torchvision_computes(name: str) -> None:
    """Of photos of several sizes, from the preprocessing to the class of each pixel of the image as sent."""
    model = segmenter(name)
    found = architecture.build(model.state_dict())
    assert found.module is not None
    assert isinstance(found.task, SegmentationTask)
    assert found.spec == Spec.uncropped(520, assumed=True)
    for photo, (size, side) in zip(samples()[::2], SIZES.items(), strict=True):
        preset, spec = SemanticSegmentation(resize_size=side), Spec.uncropped(side)
        image = Image.open(io.BytesIO(photo)).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        tensor = preset(image)[None]
        ours = normalise(crop_image(image, spec, max_pixels=2**24)[None], spec)
        np.testing.assert_allclose(ours, tensor, atol=1e-6)
        with torch.inference_mode():
            expected = model(tensor)["out"]
            row = found.module(torch.from_numpy(ours))[0].numpy()
            pixels = interpolate(expected, size[::-1], mode="bilinear")[0]
        scores = Scores.read(row, 5)
        np.testing.assert_allclose(scores.resized(), expected[0], atol=1e-4)
        probabilities = torch.from_numpy(scores.resized()).softmax(0)
        np.testing.assert_allclose(probabilities, expected[0].softmax(0), atol=1e-4)
        first, second = pixels.topk(2, 0).values
        sure = (first - second > 1e-4).numpy()
        answer = found.task.answer(row, ("",) * 5, size)
        np.testing.assert_array_equal(answer.class_map[sure], pixels.argmax(0).numpy()[sure])
        assert sure.mean() > 0.999
        assert len(answer.class_indices) > 1, "a test with one class proves nothing"
