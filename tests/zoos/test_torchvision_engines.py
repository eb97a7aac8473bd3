"""docs/precision.md says which engine runs each of torchvision's detectors and segmentation models."""

import re
from typing import Any

import numpy as np
import pytest

from pthserve.engines.openvino_engine import OpenVINOEngine
from pthserve.engines.openvino_graph import convert
from pthserve.engines.torch_engine import TorchEngine
from pthserve.errors import EngineError
from pthserve.images.preprocess import crop
from pthserve.images.spec import Spec
from pthserve.planning.agreement import CLEAR
from pthserve.planning.candidates import EngineFactory
from pthserve.planning.crops import samples
from pthserve.settings import Settings
from pthserve.tasks.objects import Detections
from pthserve.zoos import architecture, torchvision_detection, torchvision_segmentation
from pthserve.zoos.base import Architecture

from ..conftest import ROOT
from ..shared import with_long
from . import detectors, segmenters
from .detectors import detector, sized
from .segmenters import segmenter

DETECTORS, SEGMENTERS = torchvision_detection.BUILDERS, torchvision_segmentation.BUILDERS
ROUNDING = 1e-3
"""Of a score; see docs/precision.md."""
PROBABILITY = 5e-3
"""By how much a class's probability may differ at any place: after 101 layers of random weights by 0.0013."""
BORDERLINE = 0.02
"""Share of objects that may lack a match. With random weights, boxes hardly move from a regular grid, and
many overlap by just what is suppressed: rounding decides."""
PIXELS = 0.1
"""By how much the sides of a box may differ, of an image of 640 x 480 pixels. At most 0.014 was seen."""


def engines() -> dict[str, str]:
    """The table: architecture to engine."""
    page = (ROOT / "docs" / "precision.md").read_text()
    section = page.partition("\n## Detectors and segmentation models\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {name: engine for names, engine, _ in rows for name in re.findall(r"`(\w+)`", names)}


def test_the_page_has_every_architecture() -> None:
    assert sorted(engines()) == sorted((*DETECTORS, *SEGMENTERS))
    assert set(engines().values()) <= {"OpenVINO", "PyTorch"}


def rows_of(found: Architecture, spec: Spec) -> list[tuple[Any, Any]]:
    """Rows of OpenVINO and of PyTorch for photos of several shapes, at fp32."""
    assert found.module is not None
    ours, theirs = OpenVINOEngine(convert(found.module, spec), spec), TorchEngine(found.module, spec)
    photos = [crop(photo, spec, max_pixels=2**24)[None] for photo in samples()[2::2]]
    assert len({photo.shape for photo in photos}) == (2 if spec.whole else 1)  # and a trace has seen a third
    return [(ours(photo), theirs(photo)) for photo in photos]


@pytest.mark.slow
@pytest.mark.parametrize("name", with_long(DETECTORS, detectors.HEAVY))
def test_openvino_finds_the_objects_that_pytorch_finds(name: str) -> None:
    """Weights are random, and scores therefore spread by tests.zoos.detectors."""
    module = detector(name, **sized(name))
    found = architecture.build(module.state_dict(), name, sized(name))
    assert found.module is not None
    assert found.spec is not None
    assert found.task is not None
    if engines()[name] == "PyTorch":
        only_pytorch_runs(found)
        return
    for ours, theirs in rows_of(found, found.spec):
        answers: list[Any] = [found.task.answer(row[0], ("",) * 5, (640, 480)) for row in (ours, theirs)]
        one, other = (answer.at(0.2) for answer in answers)
        assert min(len(one), len(other)) > 3, "a test without objects proves nothing"
        assert max(lacking(one, other), lacking(other, one)) <= BORDERLINE


def lacking(these: Detections, those: Detections) -> float:
    """The share of `these` objects that are not among `those`."""
    near = (
        (abs(these.boxes[:, None] - those.boxes).max(-1) < PIXELS)
        & (abs(these.scores[:, None] - those.scores) < ROUNDING)
        & (these.class_indices[:, None] == those.class_indices)
    )
    return float((~near.any(1)).mean())


def only_pytorch_runs(found: Architecture) -> None:
    """That is so, and whoever wants something else is given the reason."""
    assert found.module is not None
    assert found.spec is not None
    assert found.task is not None
    with pytest.raises(EngineError, match="cannot convert"):
        convert(found.module, found.spec)
    for wanted in ({"engine": "openvino"}, {"precision": "bf16"}, {"precision": "int8"}):
        factory = EngineFactory(found.module, found.spec, Settings(device="cpu", **wanted), found.task)
        with pytest.raises(EngineError, match="only PyTorch at fp32 runs a detector with keypoints"):
            factory.candidates()
    factory = EngineFactory(found.module, found.spec, Settings(device="cpu"), found.task)
    assert [(one.engine, one.precision) for one in factory.candidates()] == [("torch", "fp32")]


@pytest.mark.slow
@pytest.mark.parametrize("name", with_long(SEGMENTERS, segmenters.HEAVY))
def test_openvino_gives_pixels_the_classes_that_pytorch_gives(name: str) -> None:
    found = architecture.build(segmenter(name).state_dict())
    assert found.task is not None
    assert engines()[name] == "OpenVINO"
    for ours, theirs in rows_of(found, Spec.uncropped(160)):
        compared = found.task.agree(ours, theirs, CLEAR)
        assert compared.differences.max() < PROBABILITY
        answers: list[Any] = [found.task.answer(row[0], ("",) * 5, (200, 160)) for row in (ours, theirs)]
        one, other = (answer.class_map for answer in answers)
        assert (one == other).mean() > 0.999
        assert len(np.unique(one)) > 1, "a test with one class proves nothing"


@pytest.mark.slow
def test_a_pass_of_noise_records_no_size_of_its_image() -> None:
    """LRASPP's head resizes features to those of another layer, and scores come with their sizes."""
    found = architecture.build(segmenter("lraspp_mobilenet_v3_large").state_dict())
    assert found.module is not None
    spec = Spec.uncropped(64)
    graph = convert(found.module, spec)
    assert str(graph.input(0).partial_shape) == "[?,3,?,?]"
    engine = OpenVINOEngine(graph, spec)
    for side in (64, 96):
        images = np.zeros((3, side, 128, 3), np.uint8)
        assert engine(images)[:, 2:4].tolist() == [[side, 128]] * 3
