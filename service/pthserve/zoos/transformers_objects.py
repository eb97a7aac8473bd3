"""Transformers' detectors and segmentation models as modules that give each image the row that tasks read.

What is done with a model's outputs is what `post_process_object_detection` or
`post_process_semantic_segmentation` of its image processor does, but for the last resize.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pthserve.errors import ArchitectureError
from pthserve.tasks.base import Task
from pthserve.tasks.detection import DetectionTask
from pthserve.tasks.objects import Table
from pthserve.tasks.segmentation import SegmentationTask
from pthserve.text import quoted

BOXES = {
    "detr": "softmax",
    "table-transformer": "softmax",
    "yolos": "softmax",
    "conditional_detr": "top 100",
    "deformable_detr": "top 100",
    "dab-detr": "top 100",
    "rt_detr": "queries",
    "rt_detr_v2": "queries",
    "d_fine": "queries",
}
"""By model_type, how scores are read: softmax over the classes and no object; or a sigmoid for each class, of
which the best 100, or as many as there are queries, are objects."""
_MASKS = ("maskformer", "mask2former")
_SIDE = 384
"""Side to which Mask2Former's masks are resized first, whatever the size of the image."""


def wrapped(model: Any, family: str, config: Any, kind: str) -> tuple[nn.Module, Task]:
    """Return the module and its task.

    Args:
        family: The model_type.
        kind: `detection` or `segmentation`.

    Raises:
        ArchitectureError: It is not known how the family's outputs are read.
    """
    classes = int(config.num_labels)
    if kind == "segmentation":
        return (Masks(model, family) if family in _MASKS else Pixels(model)).eval(), SegmentationTask(classes)
    if family not in BOXES:
        raise ArchitectureError(
            f"config.json: detectors of the model_type {quoted(family)} are not served; those of "
            f"{', '.join(BOXES)} are"
        )
    queries = int(config.num_detection_tokens if family == "yolos" else config.num_queries)
    most = min(100, queries * classes) if BOXES[family] == "top 100" else queries
    return Boxes(model, most, softmax=BOXES[family] == "softmax").eval(), DetectionTask(Table(most=most))


class Boxes(nn.Module):
    """float32 (n, 3, height, width), normalised, to (n, outputs); see `Table`.

    most: Objects of an image. softmax: Whether the last class is that of no object.
    """

    only_torch = "a detector of transformers"
    """What OpenVINO has not been compared with."""

    def __init__(self, model: nn.Module, most: int, *, softmax: bool) -> None:
        super().__init__()
        self.model, self.most, self.softmax = model, most, softmax

    def forward(self, images: Tensor) -> Tensor:
        """The objects of each image, best first."""
        found = self.model(pixel_values=images)
        logits, boxes = found.logits, found.pred_boxes
        if self.softmax:
            scores, classes = logits.softmax(-1)[..., :-1].max(-1)
            scores, places = scores.topk(self.most, 1)
            classes = classes.gather(1, places)
        else:
            scores, index = logits.sigmoid().flatten(1).topk(self.most, 1)
            classes, places = index % logits.shape[2], index // logits.shape[2]
        boxes = boxes.gather(1, places[..., None].expand(-1, -1, 4))
        half = boxes[..., 2:] / 2
        corners = torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)
        return torch.cat([corners, scores[..., None], classes[..., None].to(corners.dtype)], -1).flatten(1)


class _Scores(nn.Module):
    """float32 (n, channels, height, width), normalised, to (n, outputs); see `Scores.read`."""

    only_torch = "a segmentation model of transformers"
    varies = True
    """Its rows have as many numbers as the image has places."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """The scores of each class at each place, after their numbers of rows and columns."""
        scores = self.scores(images)
        rows, columns = scores.shape[2:]
        header = scores.new_tensor([rows, columns, rows, columns]).expand(len(scores), -1)
        return torch.cat([header, scores.flatten(1)], 1)

    def scores(self, images: Tensor) -> Tensor:
        """(n, classes, rows, columns)."""
        raise NotImplementedError


class Pixels(_Scores):
    """A model that gives a score for each class and place."""

    def scores(self, images: Tensor) -> Tensor:
        """The model's logits."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


class Masks(_Scores):
    """A model that gives masks, and a class for each."""

    def __init__(self, model: nn.Module, family: str) -> None:
        super().__init__(model)
        self.resized = family == "mask2former"

    def scores(self, images: Tensor) -> Tensor:
        """The masks by the probabilities of their classes, summed."""
        found = self.model(pixel_values=images)
        masks = found.masks_queries_logits
        if self.resized:
            masks = interpolate(masks, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
        classes = found.class_queries_logits.softmax(-1)[..., :-1]
        return torch.einsum("bqc, bqhw -> bchw", classes, masks.sigmoid())
