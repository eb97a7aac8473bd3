"""Suppression: of boxes that overlap, the one with the best score stays (non-maximum suppression)."""

import numpy as np
from numpy.typing import NDArray

CANDIDATES = 4096
"""Maximum number of boxes that are compared, those with the best scores. Each box that stays is compared with
all that are left, so the number bounds the cost of an image."""


def kept(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.integer] | NDArray[np.float32],
    overlap: float,
    most: int | None = None,
) -> NDArray[np.intp]:
    """Return the indices of the boxes that stay, best score first.

    A box is dropped if its intersection over union with a better box of the same class that stays is larger
    than `overlap`. The result is that of `torchvision.ops.batched_nms`.

    Args:
        boxes: (n, 4): left, top, right, bottom. At most CANDIDATES of them are compared.
        scores: (n,).
        classes: (n,); equal numbers are one class.
        most: Maximum number of boxes that stay; None for any number.
    """
    order = np.argsort(-scores, kind="stable")
    if overlap >= 1:
        return order[:most]
    order = order[:CANDIDATES]
    sides, kinds = boxes[order].T.copy(), classes[order]
    areas = (sides[2] - sides[0]) * (sides[3] - sides[1])
    left = np.arange(len(order))
    stay: list[int] = []
    while left.size and (most is None or len(stay) < most):
        first, rest = left[0], left[1:]
        stay.append(first)
        low = np.maximum(sides[:2, rest], sides[:2, first, None])
        high = np.minimum(sides[2:, rest], sides[2:, first, None])
        common = np.prod(np.maximum(high - low, 0), 0)
        union = areas[rest] + areas[first] - common
        left = rest[(common <= overlap * union) | (kinds[rest] != kinds[first])]
    return order[stay]
