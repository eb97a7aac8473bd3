"""YOLO: small detectors with outputs like exported YOLO models, and what these mean, by torchvision's NMS."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import batched_nms

SIDE = 64
CLASSES = 3
STRIDES = (8, 16, 32)


class Yolo(nn.Module):
    """A detector with grids of three strides; its boxes are near the cells that they are of.

    layout: `yolov5` has objectness, and three boxes a cell; `yolov8` one; `rows` a row an object.
    """

    def __init__(self, layout: str, classes: int = CLASSES, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layout, self.classes = layout, classes
        self.anchors, self.columns = (3, 5 + classes) if layout == "yolov5" else (1, 4 + classes)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.SiLU())
        self.downs = nn.ModuleList([nn.Identity(), *(nn.Conv2d(16, 16, 2, 2) for _ in STRIDES[1:])])
        self.heads = nn.ModuleList(nn.Conv2d(16, self.anchors * self.columns, 1) for _ in STRIDES)
        for head in self.heads:
            nn.init.normal_(head.get_parameter("weight"), std=1.5)
        # No two cells of a padding have the same score, the order of which nothing would say.
        self.places = nn.ParameterList(
            nn.Parameter(torch.randn(self.anchors * self.columns, SIDE // stride, SIDE // stride))
            for stride in STRIDES
        )

    def forward(self, images: Tensor) -> Tensor:
        """(n, boxes, columns), or the other way round; centre, width and height in pixels."""
        found, maps = [], self.stem(images)
        for stride, down, head, place in zip(STRIDES, self.downs, self.heads, self.places, strict=True):
            maps = down(maps)
            raw = (head(maps) + place).unflatten(1, (self.anchors, self.columns)).permute(0, 1, 3, 4, 2)
            rows, columns = raw.shape[2:4]
            y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
            centre = (torch.stack([x, y], -1) + raw[..., :2].tanh()) * stride
            size = (raw[..., 2:4].sigmoid() * 2 + 3) * stride
            found.append(torch.cat([centre, size, raw[..., 4:].sigmoid()], -1).flatten(1, 3))
        values = torch.cat(found, 1)
        if self.layout == "rows":
            half = values[..., 2:4] / 2
            scores, index = values[..., 4:].max(2, keepdim=True)
            return torch.cat([values[..., :2] - half, values[..., :2] + half, scores, index.float()], 2)
        return values.transpose(1, 2) if self.layout == "yolov8" else values


class Found(NamedTuple):
    """Objects, best first, in pixels of an image."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]


def expected(
    values: Tensor,
    layout: str,
    size: tuple[int, int],
    *,
    threshold: float = 0.25,
    overlap: float,
    most: int = 300,
) -> Found:
    """What Ultralytics' `non_max_suppression` and `scale_boxes` make of the output for one image.

    size: (width, height) of the image, which was put into a letterbox of SIDE pixels.
    """
    values = values.T if layout == "yolov8" else values
    scores = values[:, 5:] * values[:, 4:5] if layout == "yolov5" else values[:, 4:]
    boxes = torch.cat([values[:, :2] - values[:, 2:4] / 2, values[:, :2] + values[:, 2:4] / 2], 1)
    best, classes = scores.max(1)
    sure = best >= threshold
    boxes, best, classes = boxes[sure], best[sure], classes[sure]
    stay = batched_nms(boxes, best, classes, overlap)[:most]
    gain = min(SIDE / size[0], SIDE / size[1])
    pads = [round((SIDE - round(side * gain)) / 2 - 0.1) for side in size]
    placed = (boxes[stay] - torch.tensor(pads * 2)) / gain
    placed = placed.clamp(torch.zeros(4), torch.tensor(size * 2, dtype=torch.float32))
    return Found(placed.numpy(), best[stay].numpy(), classes[stay].numpy())


def exported(
    path: Path,
    module: nn.Module,
    metadata: dict[str, str] | None = None,
    *,
    shape: tuple[int, ...] = (1, 3, SIDE, SIDE),
    names: Any = ("output0",),
    free: bool = False,
) -> Path:
    """The module as an ONNX file, with what Ultralytics writes into such a file."""
    torch.onnx.export(
        module.eval(),
        (torch.zeros(shape),),
        path,
        input_names=["images"],
        output_names=list(names),
        dynamic_shapes=({0: torch.export.Dim("n")},) if free else None,
        dynamo=True,
        verbose=False,
        external_data=False,
        opset_version=18,
    )
    if metadata:
        model = onnx.load(path)
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, path)
    return path


def ultralytics(classes: int = CLASSES, **other: str) -> dict[str, str]:
    """What Ultralytics writes into a file of YOLOv8 and its successors."""
    names = {number: f"kind {number}" for number in range(classes)}
    return {"stride": "32", "task": "detect", "imgsz": f"[{SIDE}, {SIDE}]", "names": str(names), **other}
