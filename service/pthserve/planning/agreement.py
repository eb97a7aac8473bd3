"""Agreement: compare an engine with the reference, and the sample images for that."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Images, Logits
from pthserve.images.preprocess import OWN_MAX_PIXELS, Prepared, crop
from pthserve.images.spec import Spec
from pthserve.tasks.base import Agreement, Task


def compare(
    task: Task,
    forward: Callable[[Images], Logits],
    images: Images,
    reference: NDArray[np.float32],
    tolerance: float,
) -> Agreement:
    """Compare the scores of an engine with those of the reference on `images`, one image at a time."""
    scores = [task.scores(forward(images[number : number + 1])) for number in range(len(images))]
    return task.compare(np.concatenate(scores), reference, tolerance)


def samples() -> Sequence[bytes]:
    """Return the sample images of the package, as JPEG files."""
    folder = resources.files("pthserve.images") / "samples"
    return [
        file.read_bytes()
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".jpg")
    ]


def sample_images(spec: Spec) -> Prepared:
    """Return the preprocessed sample images, all of one shape, as `Prepared` has them."""
    spec = replace(spec, whole=False)
    return np.stack([crop(data, spec, max_pixels=OWN_MAX_PIXELS) for data in samples()])
