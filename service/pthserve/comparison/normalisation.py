"""Normalisation: the mean and standard deviation that make a user's values of pixels, by a linear fit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pthserve.images.preprocess import Pixels
from pthserve.images.spec import Spec

Floats = NDArray[np.float32]
Numbers = NDArray[np.float64]
Channels = tuple[float, ...]

KNOWN: tuple[tuple[Channels, Channels], ...] = (
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet, as torchvision and most others have it
    ((0.5,), (0.5,)),  # values of -1 to 1
    ((0.0,), (1.0,)),  # values of 0 to 1
    ((0.0,), (1 / 255,)),  # values of 0 to 255
    ((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,)),  # Caffe and Keras, blue first
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),  # CLIP
    ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),  # CIFAR-10
    ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # CIFAR-10, as many scripts have it
    ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),  # CIFAR-100
    ((0.449,), (0.226,)),  # ImageNet in grey
    ((0.1307,), (0.3081,)),  # MNIST
)
"""Usual means and standard deviations, of values in 0 to 1; a single number stands for each channel."""
SAME = 0.3
"""Grey levels that a mean may be off, and still be a usual one. A fit is closer by far, but resized images
that were rounded shift it."""
SAME_SHARE = 0.005
"""The same for a standard deviation, as a share of it."""
DECIMALS = range(2, 7)


@dataclass(frozen=True, slots=True)
class Fit:
    """Values of a tensor as `slope` times pixels (0 to 1) plus `intercept`, one number a channel.

    levels: what is left, in grey levels, root mean square over all channels; infinity where nothing fits.
    """

    slope: Numbers
    intercept: Numbers
    levels: float


def fit(pixels: Pixels, tensor: Floats) -> Fit:
    """The fit for one image: uint8 (height, width, channels) and float32 (channels, height, width)."""
    return fit_all([pixels], [tensor])


def fit_all(pixels: Sequence[Pixels], tensors: Sequence[Floats]) -> Fit:
    """One fit for several images."""
    x = np.concatenate([image.reshape(-1, image.shape[-1]).T for image in pixels], axis=1) / np.float64(255)
    y = np.concatenate([tensor.reshape(len(tensor), -1) for tensor in tensors], axis=1).astype(np.float64)
    flat_x, flat_y = (np.ptp(values, axis=1) == 0 for values in (x, y))
    mean_x, mean_y = x.mean(1), y.mean(1)
    x -= mean_x[:, None]
    y -= mean_y[:, None]
    of_x, of_y, common = (np.einsum("ci,ci->c", one, other) for one, other in ((x, x), (y, y), (x, y)))
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = common / of_x
        left = np.sqrt(np.maximum(of_y - common * slope, 0) / x.shape[1]) / np.abs(slope) * 255
    # Where both have one value all over they fit, and no slope can be told.
    left = np.where(flat_x | flat_y, np.where(flat_x & flat_y, 0.0, np.inf), left)
    slope = np.where(flat_x | flat_y, 0.0, slope)
    return Fit(slope, mean_y - slope * mean_x, float(np.sqrt(np.mean(left**2))))


def normalisation(found: Fit, spec: Spec) -> tuple[Channels, Channels] | None:
    """Mean and standard deviation as a card states them: those of `spec` or usual ones where these fit.

    None where a card cannot state them: outside of 0 to 1, or negative as in an image that is inverted.
    """
    if (found.slope <= 0).any():
        return None
    std = 1 / found.slope
    mean = -found.intercept * std
    for known_mean, known_std in ((spec.mean, spec.std), *KNOWN):
        for order in (1, -1):
            means, stds = (_spread(values, len(std))[::order] for values in (known_mean, known_std))
            if _near(mean, std, np.array(means), np.array(stds)):
                return means, stds
    if mean.min() < -SAME / 255 or mean.max() > 1 + SAME / 255 or std.max() > 1 + SAME_SHARE:
        return None
    return _rounded(mean.clip(0, 1), SAME / 2550, 0), _rounded(std.clip(None, 1), 0, SAME_SHARE / 10)


def _spread(values: Channels, channels: int) -> Channels:
    return values * channels if len(values) == 1 else values[:channels]


def _near(mean: Numbers, std: Numbers, known_mean: Numbers, known_std: Numbers) -> bool:
    return bool(
        (np.abs(mean - known_mean) * 255 <= SAME).all() and (np.abs(std / known_std - 1) <= SAME_SHARE).all()
    )


def _rounded(values: Numbers, most: float, share: float) -> Channels:
    """`values` with as few decimals as leave each within `most`, or within a `share` of itself."""
    for decimals in DECIMALS:
        rounded = values.round(decimals)
        if (np.abs(rounded - values) <= np.maximum(most, share * values)).all():
            break
    return tuple(float(value) for value in rounded)
