"""Exported detectors and segmenters: boxes and classes of pixels as the original gives them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import batched_nms

from pthserve.certainty import Origin
from pthserve.errors import ArchitectureError, CardError, EngineFailed
from pthserve.images.preprocess import crop, normalise
from pthserve.images.spec import Spec
from pthserve.loading.load import build, load
from pthserve.loading.model import Model
from pthserve.loading.pack import pack
from pthserve.options import ModelOptions
from pthserve.planning.crops import samples
from pthserve.tasks.objects import Detections

from . import yolo
from .yolo import CLASSES, SIDE, Yolo, expected, exported, ultralytics

pytestmark = pytest.mark.slow

OPTIONS = ModelOptions(threads=1, tune_budget=0.0, precision="fp32")
OVERLAPS = {"yolov5": 0.45, "yolov8": 0.7}
V5 = {"stride": "32", "names": str([f"kind {number}" for number in range(CLASSES)])}


def served(path: Path, card: str = "", **options: Any) -> Model:
    if card:
        (path.parent / "model.yaml").write_text(card)
    return load(str(path), OPTIONS.model_copy(update=options))


def about(model: Any, subject: str) -> Any:
    return next(one for one in model.inferred if one.subject == subject)


def prepared(model: Model, photo: bytes) -> Tensor:
    """The photo as the network gets it; tests/images has what a letterbox is."""
    return torch.from_numpy(normalise(crop(photo, model.spec, max_pixels=2**30)[None], model.spec))


def agrees(found: Detections, wanted: yolo.Found) -> None:
    assert len(wanted.scores) > 2
    np.testing.assert_allclose(found.boxes, wanted.boxes, atol=0.01)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
    assert found.class_indices.tolist() == wanted.classes.tolist()


def agrees_with_yolo(model: Model, module: Yolo, **arguments: Any) -> None:
    """Whether `model` finds in photos what the module, torchvision's NMS and the letterbox give."""
    for photo in samples()[:4]:
        found = model(photo)
        with torch.no_grad():
            (values,) = module.eval()(prepared(model, photo))
        given = {"overlap": OVERLAPS.get(module.layout), **arguments}
        wanted = expected(values, module.layout, found.size, **given)
        assert len(wanted.scores) < values.numel() / module.columns  # some are suppressed
        agrees(found, wanted)


@pytest.mark.parametrize(("layout", "metadata"), [("yolov8", ultralytics()), ("yolov5", V5)])
def test_a_yolo_model_is_recognised_by_its_file(
    tmp_path: Path, layout: str, metadata: dict[str, str]
) -> None:
    module = Yolo(layout)
    with served(exported(tmp_path / "best.onnx", module, metadata)) as model:
        agrees_with_yolo(model, module)
        assert model.labels == ("kind 0", "kind 1", "kind 2")
        assert model.task.name == "detection"
        task: Any = model.task
        assert task.query[0].schema["default"] == 0.25, "as YOLO's own predict"
        assert about(model, "outputs").origin == Origin.FILE
        assert layout in about(model, "outputs").value
        assert "letterbox" in about(model, "preprocessing").value


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("layout", ["yolov8", "yolov5"])
def test_the_card_names_the_layout(tmp_path: Path, layout: str, suffix: str) -> None:
    module = Yolo(layout).eval()
    path = tmp_path / f"best{suffix}"
    if suffix == ".onnx":
        exported(path, module, free=True, shape=(2, 3, SIDE, SIDE))
    else:
        torch.export.save(torch.export.export(module, (torch.zeros(1, 3, SIDE, SIDE),)), path)
    card = f"task: detection\noutputs: {{layout: {layout}, overlap: 0.3, objects: 9}}\nthreshold: 0.4\n"
    with served(path, card + "labels: [ant, bee, cat]") as model:
        agrees_with_yolo(model, module, overlap=0.3, most=9, threshold=0.4)
        assert model.labels == ("ant", "bee", "cat")


def test_a_model_that_was_exported_with_its_nms_gives_rows(tmp_path: Path) -> None:
    module = Yolo("rows").eval()
    path = exported(tmp_path / "best.onnx", module, ultralytics(args="{'nms': True}"))
    with served(path) as model:
        for photo in samples()[:3]:
            found = model(photo)
            size = found.size
            with torch.no_grad():
                (values,) = module(prepared(model, photo))
            gain = min(SIDE / size[0], SIDE / size[1])
            pads = torch.tensor([round((SIDE - round(side * gain)) / 2 - 0.1) for side in size] * 2)
            boxes = ((values[:, :4] - pads) / gain).clamp(torch.zeros(4), torch.tensor(size * 2).float())
            order = values[:, 4].argsort(descending=True)
            order = order[values[order, 4] >= 0.25]
            agrees(
                found,
                yolo.Found(boxes[order].numpy(), values[order, 4].numpy(), values[order, 5].long().numpy()),
            )


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, r"output0 \(1, 7, 84\).*`task: detection, outputs: \{layout: yolov8\}`"),
        (ultralytics(classes=5), "layout: yolov8"),  # the names are of another model
        (ultralytics(names="__import__('os').abort()"), "layout: yolov8"),
        (ultralytics(task="pose"), "a YOLO model for the task pose, which is not supported"),
    ],
)
def test_what_is_not_certain_is_asked_for(tmp_path: Path, metadata: dict[str, str], reason: str) -> None:
    path = exported(tmp_path / "best.onnx", Yolo("yolov8"), metadata)
    with pytest.raises(ArchitectureError, match=reason):
        build(str(path), OPTIONS)


class Separate(nn.Module):
    """Boxes, and a score for each class, or the best one and its index; each image by itself if `single`."""

    def __init__(
        self, form: str = "xyxy", *, units: str = "pixels", single: bool = False, labels: bool = True
    ) -> None:
        super().__init__()
        self.yolo, self.form, self.units = Yolo("yolov8"), form, units
        self.single, self.labels = single, labels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """In the order scores, boxes, labels."""
        values = self.yolo(images).transpose(1, 2)
        centre, size, scores = values[..., :2], values[..., 2:4], values[..., 4:]
        first, second = {
            "xyxy": (centre - size / 2, centre + size / 2),
            "xywh": (centre - size / 2, size),
            "cxcywh": (centre, size),
        }[self.form]
        boxes = torch.cat([first, second], -1) / (SIDE if self.units == "shares" else 1)
        found: tuple[Tensor, ...] = scores, boxes
        if self.labels:
            best, index = scores.max(2)
            found = best, boxes, index + 1
        return tuple(one[0] for one in found) if self.single else found


NAMES = ("scores", "boxes", "labels")


@pytest.mark.parametrize(
    ("form", "units", "single"),
    [
        ("xyxy", "pixels", True),
        ("xywh", "shares", False),
        ("cxcywh", "shares", False),
        ("cxcywh", "pixels", True),
    ],
)
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_outputs_that_the_card_names_are_boxes(
    tmp_path: Path, suffix: str, form: str, units: str, single: bool
) -> None:
    """Of the image as a whole, squashed, in the order of their scores; all of them, if they overlap."""
    module = Separate(form, units=units, single=single).eval()
    path = tmp_path / f"model{suffix}"
    names: tuple[str, ...] = NAMES
    if suffix == ".onnx":
        exported(path, module, names=NAMES)
    else:
        program = torch.export.export(module, (torch.zeros(1, 3, SIDE, SIDE),))
        torch.export.save(program, path)
        names = tuple(str(one.arg.name) for one in program.graph_signature.output_specs)
    outputs = {**dict(zip(NAMES, names, strict=True)), "format": form, "units": units, "first_label": 1}
    card = f"task: detection\nthreshold: 0.3\nlabels: [ant, bee, cat]\noutputs: {outputs}\n".replace("'", "")
    card += f"preprocessing: {{resize: [{SIDE}, {SIDE}], crop: {SIDE}, mean: [0, 0, 0], std: [1, 1, 1]}}"
    with served(path, card) as model:
        assert model.labels == ("__background__", "ant", "bee", "cat")
        for photo in samples()[:3]:
            image = prepared(model, photo)
            found = model(photo)
            with torch.no_grad():
                values = Separate.forward(Separate("xyxy").eval(), image)
            scores, boxes, index = (one[0] for one in values)
            order = scores.argsort(descending=True)
            order = order[scores[order] >= 0.3]
            wide, high = found.size
            placed = boxes[order] * torch.tensor([wide / SIDE, high / SIDE] * 2)
            agrees(found, yolo.Found(placed.numpy(), scores[order].numpy(), index[order].numpy()))


def test_a_score_for_each_class_needs_a_word_about_overlaps(tmp_path: Path) -> None:
    module = Separate(labels=False).eval()
    path = exported(tmp_path / "model.onnx", module, names=("scores", "boxes"))
    card = "task: detection\nthreshold: 0.3\noutputs: {boxes: boxes, scores: scores%s}\n"
    card += f"preprocessing: {{resize: [{SIDE}, {SIDE}], crop: {SIDE}, mean: [0, 0, 0], std: [1, 1, 1]}}"
    with pytest.raises(ArchitectureError, match="state `overlap` in `outputs`"):
        served(path, card % "")
    with served(path, card % ", overlap: 0.4") as model:
        photo = samples()[0]
        image = prepared(model, photo)
        with torch.no_grad():
            scores, boxes = (one[0] for one in module(image))
        best, index = scores.max(1)
        sure = best >= 0.3
        stay = batched_nms(boxes[sure], best[sure], index[sure], 0.4)
        found = model(photo)
        wide, high = found.size
        placed = boxes[sure][stay] * torch.tensor([wide / SIDE, high / SIDE] * 2)
        agrees(found, yolo.Found(placed.numpy(), best[sure][stay].numpy(), index[sure][stay].numpy()))


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        (
            "{boxes: box, scores: scores, labels: labels}",
            "has no output 'box'; its outputs are scores, boxes",
        ),
        ("{boxes: scores, scores: boxes, labels: labels}", r"boxes must be \(n, objects, 4\)"),
        ("{boxes: boxes, scores: scores, labels: labels}", "state `labels` in model.yaml"),
        ("{layout: yolov8, tensor: boxes}", r"boxes \(1, 84, 4\), but `layout: yolov8` is"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(tmp_path: Path, outputs: str, reason: str) -> None:
    path = exported(tmp_path / "model.onnx", Separate().eval(), names=NAMES)
    with pytest.raises(ArchitectureError, match=reason):
        served(path, f"task: detection\noutputs: {outputs}")


def test_a_graph_with_boxes_is_never_taken_for_a_classifier(tmp_path: Path) -> None:
    path = exported(tmp_path / "model.onnx", Separate(single=True).eval(), names=NAMES)
    with pytest.raises(
        ArchitectureError, match=r"outputs: \{boxes: boxes, scores: scores, labels: labels, format"
    ):
        build(str(path), OPTIONS)


def test_a_class_that_has_no_label_is_an_error_and_not_another_class(tmp_path: Path) -> None:
    path = exported(tmp_path / "model.onnx", Separate().eval(), names=NAMES)
    card = "labels: [ant, bee]\nthreshold: 0.0\noutputs: {boxes: boxes, scores: scores, labels: labels}\n"
    with served(path, card) as model, pytest.raises(EngineFailed, match="an object of the class 3"):
        model(samples()[0])


def test_a_crop_that_cuts_objects_off_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "best.onnx", Yolo("yolov8"), ultralytics())
    with pytest.raises(CardError, match=r"does not get the rest of an image.*state `resize: \[64, 64\]`"):
        served(path, "preprocessing: {resize: 80, crop: 64}")


class Pixels(nn.Module):
    """A score for each class and place, at a quarter of the size of the image."""

    def __init__(self, classes: int, end: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, classes, 3, padding=1), end or nn.Identity()
        )

    def forward(self, images: Tensor) -> Tensor:
        """(n, classes, rows, columns)."""
        found: Tensor = self.layers(images)
        return found


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize(("classes", "end"), [(4, None), (4, nn.Softmax(1)), (1, None), (1, nn.Sigmoid())])
def test_scores_of_pixels_become_a_class_map(
    tmp_path: Path, suffix: str, classes: int, end: nn.Module | None
) -> None:
    module = Pixels(classes, end).eval()
    path = tmp_path / f"model{suffix}"
    if suffix == ".onnx":
        exported(path, module, names=("pixels",))
    else:
        torch.export.save(torch.export.export(module, (torch.zeros(1, 3, SIDE, SIDE),)), path)
    with served(path, "task: segmentation") as model:
        assert len(model.labels) == max(classes, 2)
        for photo in samples()[:3]:
            image = prepared(model, photo)
            found = model(photo)
            with torch.no_grad():
                scores = module.layers[:3](image)
            if classes == 1:
                scores = torch.cat([torch.zeros_like(scores), scores], 1)
            resized = torch.nn.functional.interpolate(scores, found.size[::-1], mode="bilinear")
            first, second = resized[0].topk(2, 0).values
            clear = (first - second > 1e-4).numpy()
            assert clear.mean() > 0.99
            assert (found.class_map == resized[0].argmax(0).numpy())[clear].all()


def test_a_class_map_is_asked_for_by_name(tmp_path: Path) -> None:
    path = exported(tmp_path / "model.onnx", Pixels(4).eval(), names=("pixels",))
    with pytest.raises(ArchitectureError, match=r"pixels \(1, 4, 16, 16\).*state `task: segmentation`"):
        build(str(path), OPTIONS)
    with pytest.raises(ArchitectureError, match=r"its output is pixels .*, but `layout: yolov8` is"):
        served(path, "outputs: {layout: yolov8}")


def test_outputs_are_of_graphs_alone(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}, tmp_path / "model.pth")
    (tmp_path / "model.yaml").write_text("outputs: {layout: yolov8}")
    with pytest.raises(ArchitectureError):
        build(str(tmp_path / "model.pth"), OPTIONS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_a_detector_of_torchvision_that_was_exported_finds_what_it_found(tmp_path: Path) -> None:
    """With its own resize, normalisation and suppression in the graph, and any number of objects."""
    torch.manual_seed(0)
    module = models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4, score_thresh=0.001, detections_per_img=40
    ).eval()
    for layer in module.modules():  # of layers at random, the last give the same for every image
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    images = [crop(photo, Spec((320, 320), (320, 320)), max_pixels=2**30) for photo in samples()[:3]]
    module.train()
    with torch.no_grad():
        features = module.backbone(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1)
        module.head(list(features.values()))
    module.eval()
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        module,
        (torch.rand(1, 3, 320, 320),),
        path,
        input_names=["image"],
        output_names=["boxes", "scores", "labels"],
        dynamo=False,
        opset_version=18,
    )
    card = "labels: [ant, bee, cat]\nthreshold: 0.0\n"
    card += "preprocessing: {resize: [320, 320], crop: 320, mean: [0, 0, 0], std: [1, 1, 1]}\n"
    card += "outputs: {boxes: boxes, scores: scores, labels: labels, first_label: 1}"
    with served(path, card) as model:
        for photo in samples()[:3]:
            found = model(photo)
            with torch.no_grad():
                (wanted,) = module(prepared(model, photo))
            order = wanted["scores"].argsort(descending=True, stable=True)
            scale = torch.tensor([side / 320 for side in found.size] * 2)
            agrees(
                found,
                yolo.Found(
                    (wanted["boxes"][order] * scale).numpy(),
                    wanted["scores"][order].numpy(),
                    wanted["labels"][order].numpy(),
                ),
            )


@pytest.mark.parametrize("layout", ["yolov8", "yolov5"])
def test_a_pack_of_a_yolo_model_finds_the_same_without_torch(tmp_path: Path, layout: str) -> None:
    module = Yolo(layout)
    exported(tmp_path / "best.onnx", module, {"yolov8": ultralytics(), "yolov5": V5}[layout])
    pack(str(tmp_path / "best.onnx"), tmp_path / "packed", OPTIONS)
    with served(tmp_path / "packed") as model:
        assert model.plan.engine == "openvino"
        agrees_with_yolo(model, module)
    program = (
        "import sys\nfrom pathlib import Path\nfrom pthserve import load\n"
        "found = load(sys.argv[1])(Path(sys.argv[2]).read_bytes())\n"
        "assert len(found) > 2 and 'torch' not in sys.modules"
    )
    (tmp_path / "photo.jpg").write_bytes(samples()[0])
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "packed"), str(tmp_path / "photo.jpg")], check=True
    )


def test_a_pack_of_a_segmentation_model_gives_the_same_class_map(tmp_path: Path) -> None:
    exported(tmp_path / "model.onnx", Pixels(4).eval(), names=("pixels",))
    with served(tmp_path / "model.onnx", "task: segmentation") as model:
        expected_maps = [model(photo).class_map for photo in samples()[:3]]
    pack(str(tmp_path), tmp_path / "packed", OPTIONS)
    with served(tmp_path / "packed") as model:
        for photo, wanted in zip(samples()[:3], expected_maps, strict=True):
            assert (model(photo).class_map == wanted).mean() > 0.9999
