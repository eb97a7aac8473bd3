"""Detector: one of torchvision's detectors as a module that gives each image a row of numbers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from pthserve.tasks.objects import Table

_KEYPOINTS = "a detector with keypoints: OpenVINO cannot resize a heat map of each object to its box"


class Detector(nn.Module):
    """float32 (n, 3, height, width), resized and normalised, to (n, outputs); see `Table`.

    model: a detector of torchvision, which from then on neither resizes nor normalises, nor gives boxes in
    the coordinates of anything but what it was given.
    table: how many detections a row has, and what of each.
    """

    varies = True
    """Whether what is computed follows from the image, so that no recording of it can be replayed."""
    one_image = True
    """Whether a graph of it is for one image: each has a computation of its own."""

    def __init__(self, model: Any, table: Table) -> None:
        super().__init__()
        model.transform = _Prepared(model.transform)
        self.model = model
        self.table = table
        self.only_torch = _KEYPOINTS if table.keypoints else ""
        """What OpenVINO cannot run, or ""."""

    def forward(self, images: Tensor) -> Tensor:
        """The detections of each image, best first."""
        # As tensors, for which a trace has the sizes of each image, and not of the one that it saw.
        size = torch._shape_as_tensor(images)[2:].flip(0).to(images)
        found: Sequence[dict[str, Tensor]] = self.model(list(images))
        return torch.stack([self._row(one, size) for one in found])

    def _row(self, found: dict[str, Tensor], size: Tensor) -> Tensor:
        boxes = found["boxes"]
        columns = [
            boxes / size.repeat(2),
            found["scores"][:, None],
            found["labels"][:, None].to(boxes.dtype),
        ]
        if self.table.keypoints:
            places = found["keypoints"][..., :2] / size
            scores = found["keypoints_scores"][..., None]
            columns.append(torch.cat((places, scores), -1).flatten(1))
        if self.table.mask:
            columns.append(found["masks"].flatten(1))
        table = pad(torch.cat(columns, 1), (0, 0, 0, self.table.most))[: self.table.most]
        return table[table[:, 4].argsort(descending=True, stable=True)].flatten()


class _Prepared(GeneralizedRCNNTransform):  # type: ignore[misc]
    """What is left of a transform where images are resized and normalised, and boxes stay as they are."""

    def __init__(self, usual: GeneralizedRCNNTransform) -> None:
        super().__init__(
            min_size=usual.min_size,
            max_size=usual.max_size,
            image_mean=usual.image_mean,
            image_std=usual.image_std,
            size_divisible=usual.size_divisible,
            fixed_size=usual.fixed_size,
        )

    def normalize(self, image: Tensor) -> Tensor:
        """The image itself."""
        return image

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """The image itself."""
        return image, target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:  # noqa: ARG002
        """What was found, as it is."""
        return result
