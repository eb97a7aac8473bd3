"""Heat maps: where in an image the evidence for a class is, by the engine's own method or by occlusion."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Engine, Explains, Explanation, Logits
from pthserve.errors import EngineFailed
from pthserve.images.spec import Spec
from pthserve.tasks.base import Target

Image = NDArray[np.uint8]
"""uint8 (height, width, channels), as the spec makes it."""

GRID = 7
"""Rows and columns of an occlusion map: as the last feature map of convolutional ImageNet models has."""
AT_ONCE = 4
"""Images in one forward pass of an occlusion map, so that other requests do not wait long."""


def heat_map(
    engine: Engine, spec: Spec, image: Image, target: Target, forward: Callable[[Image], Logits]
) -> Explanation:
    """Where in `image` the evidence for `target` is: float32 (rows, columns), 0 to 1, over the whole image.

    The engine's own method is used where it has one, and occlusion elsewhere. Evidence against the class is
    0; so is the whole map if there is no evidence.

    Args:
        forward: uint8 (n, height, width, channels) to logits; it may queue for the engine.

    Raises:
        EngineFailed: the evidence is not finite. What `forward` raises passes through.
    """
    found = engine.explain(image, target.output) if isinstance(engine, Explains) else None
    if found is None:
        found = _occlusion(image, target, spec, forward)
    elif target.sign < 0:
        found = found._replace(map=-found.map)
    if not np.isfinite(found.map).all():
        raise EngineFailed("the heat map contains NaN; check the model's weights and the precision")
    evidence = np.maximum(found.map, 0)
    return found._replace(map=evidence / max(evidence.max(), np.finfo(np.float32).tiny))


def _occlusion(image: Image, target: Target, spec: Spec, forward: Callable[[Image], Logits]) -> Explanation:
    """Return how much the log-probability falls when a patch is hidden, for each place of a grid.

    Zeiler and Fergus (2014), "Visualizing and understanding convolutional networks", 4.2. The patch is two
    places wide, and of the mean colour.
    """
    hidden = np.concatenate((image[None], _hidden(image, spec)))
    answers = [forward(hidden[start : start + AT_ONCE]) for start in range(0, len(hidden), AT_ONCE)]
    chance = target.log_probability(np.concatenate(answers))
    return Explanation("occlusion", (chance[0] - chance[1:]).reshape(GRID, GRID))


def _hidden(image: Image, spec: Spec) -> Image:
    """`image` with a patch over each place of the grid, row by row: (GRID ** 2, height, width, channels)."""
    hidden = np.repeat(image[None], GRID**2, axis=0)
    colour = np.rint(255 * np.asarray(spec.mean)).astype(np.uint8)
    down, across = (
        np.linspace(-side / GRID / 2, side + side / GRID / 2, GRID + 2) for side in image.shape[:2]
    )
    for place, one in enumerate(hidden):
        row, column = divmod(place, GRID)
        top, bottom = np.rint(down[[row, row + 2]]).astype(int).clip(0)
        left, right = np.rint(across[[column, column + 2]]).astype(int).clip(0)
        one[top:bottom, left:right] = colour
    return hidden
