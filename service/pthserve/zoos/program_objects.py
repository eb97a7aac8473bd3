"""Program objects: the outputs of an exported program as the row that tasks read, computed with PyTorch.

`engines.object_graphs` computes the same for an ONNX file, and says what the row is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pthserve.engines.object_graphs import BoxOutputs


def table(found: Sequence[Tensor], outputs: BoxOutputs) -> Tensor:
    """Return all boxes in the form of `Table`: float32 (n, numbers of all boxes)."""
    boxes, scores, classes = _parts([one.float() for one in found], outputs)
    if outputs.sigmoid:
        scores = scores.sigmoid()
    if classes is None:
        scores, index = scores.max(2, keepdim=True)
        classes = index.float()
    if outputs.shift is not None:
        place, size = torch.split(boxes, 2, 2)
        if outputs.shift:
            place = place - size * outputs.shift
        boxes = torch.cat([place, place + size], 2)
    shares = boxes / boxes.new_tensor(outputs.scale)
    return torch.cat([shares, scores, classes], 2).flatten(1)


def pixel_scores(scores: Tensor) -> Tensor:
    """Return the scores of pixels, (n, classes, rows, columns), as a row an image.

    One score a pixel, that of a class beside the background, becomes two, with 0 for the background.
    """
    scores = scores.float()
    if scores.shape[1] == 1:
        scores = torch.cat([scores * 0, scores], 1)
    return scores.flatten(1)


def _parts(found: Sequence[Tensor], outputs: BoxOutputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return boxes, scores and classes, (n, boxes, ...); no classes if the scores have a column for each."""
    if outputs.layout is None:
        boxes, scores, *classes = found
        if boxes.ndim == 2:  # of one image
            boxes, scores, *classes = (one[None] for one in (boxes, scores, *classes))
        if scores.ndim == 2:
            scores = scores[..., None]
        return boxes, scores, classes[0][..., None] if classes else None
    (values,) = found
    if outputs.layout == "yolov8":
        values = values.transpose(1, 2)
    boxes, scores, *rest = torch.split(values, outputs.widths(values.shape[2]), 2)
    if outputs.layout == "yolov5":
        return boxes, scores * rest[0], None
    return boxes, scores, rest[0] if rest else None
