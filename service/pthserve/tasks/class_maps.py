"""Class maps: from the few scores that a segmentation network computes to the class of each pixel, as runs.

The class of a pixel is the one with the largest score, once the scores are resized to the image. They are not
resized as a whole: between two rows of the network's image with the same class on top, every pixel of a
column has that class, since each of its scores is a mean of those two. Only the others are computed.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pthserve.images.cost import Cost
from pthserve.images.preprocess import neighbours
from pthserve.tasks.masks import Runs

_HEADER = 4
"""Numbers before the scores in a row: their rows and columns, and height and width of the network's image."""
_AT_ONCE = 2**18
"""Number of scores, or of pixels, that are in memory at the same time."""
_NANOSECONDS = 40.0
"""Maximum CPU time in nanoseconds per score in a column of the network's image and per column of the image,
on one core of a server of 2023: if the classes of neighbours differ everywhere, as in noise."""
_PER_SCORE, _PER_RUN = 64, 32
"""Maximum bytes per score in memory, and per run, with the values that both are computed from."""


class Scores(NamedTuple):
    """What a network computes for an image, before it resizes the scores to its own image.

    values: float32 (classes, rows, columns), spread evenly over the image. height, width: of the network's
    image, to which its scores are resized first, as torchvision's segmentation models do it themselves.
    """

    values: NDArray[np.float32]
    height: int
    width: int

    @classmethod
    def read(cls, row: NDArray[np.float32], classes: int, places: tuple[int, int] | None = None) -> "Scores":
        """The scores in an engine's row: `_HEADER` numbers, then `values`.

        places: rows and columns of the scores of a graph for one size, which has no header.
        """
        if places is not None:
            return cls(row.reshape(classes, *places), *places)
        rows, columns, height, width = (int(number) for number in row[:_HEADER])
        return cls(row[_HEADER:].reshape(classes, rows, columns), height, width)

    def resized(self) -> NDArray[np.float32]:
        """float32 (classes, height, width): the scores as torchvision's model gives them."""
        wide = _between(self.values, self.width, slice(None))
        return _between(wide.swapaxes(1, 2), self.height, slice(None)).swapaxes(1, 2)

    def confidence(self) -> float:
        """The probability of the top class, by softmax: the mean over `values`."""
        exponents = np.exp(self.values - self.values.max(0))
        return float((1 / exponents.sum(0)).mean())

    def cost(self, size: tuple[int, int]) -> Cost:
        """Maximum cost of `class_map` for an image of `size`, (width, height)."""
        classes, rows, _ = self.values.shape
        scores = size[0] * self.height * classes
        runs = size[0] * min(size[1], 4 * rows)
        return Cost(
            _PER_SCORE * max(_AT_ONCE, classes * self.height) + _PER_RUN * runs, scores * _NANOSECONDS / 1e9
        )


class ClassMap(NamedTuple):
    """The class of each pixel of an image, as runs of pixels down one column after the other; see `Runs`.

    size: (width, height) of the image. ends: int64 (runs,), the pixel behind each run. classes: int32
    (runs,); neighbours differ.
    """

    size: tuple[int, int]
    ends: NDArray[np.int64]
    classes: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of pixels of each run."""
        return np.diff(self.ends, prepend=0)

    def pixels(self, count: int) -> NDArray[np.int64]:
        """Number of pixels of each of `count` classes."""
        return np.bincount(self.classes, self.lengths, count).astype(np.int64)

    def runs(self, class_index: int) -> Runs:
        """The pixels of one class."""
        chosen = self.classes == class_index
        return Runs(self.size, (self.ends - self.lengths)[chosen], self.ends[chosen])

    def to_array(self, dtype: type[np.uint8] | type[np.uint16] | type[np.int64]) -> NDArray[np.integer]:
        """The class of each pixel, (height, width)."""
        width, height = self.size
        columns = np.repeat(self.classes.astype(dtype), self.lengths).reshape(width, height)
        return np.ascontiguousarray(columns.T)

    def agreement(self, other: "ClassMap") -> float:
        """The share of pixels that have the same class in a map of the same size; 0 if the sizes differ."""
        if self.size != other.size:
            return 0.0
        ends = np.union1d(self.ends, other.ends)
        ours, theirs = (one.classes[np.searchsorted(one.ends, ends)] for one in (self, other))
        return float(np.diff(ends, prepend=0)[ours == theirs].sum() / ends[-1])


def class_map(scores: Scores, size: tuple[int, int]) -> ClassMap:
    """The class with the largest score at each pixel of an image of `size`, (width, height).

    Scores are resized twice, by `torch.nn.functional.interpolate(mode="bilinear")`: to the network's image,
    and from there to this one. Of equal scores the first counts.
    """
    height = size[1]
    ends, classes = [], []
    for first, strip in _strips(scores, size):
        flat = strip.T.ravel()
        last = np.append(np.flatnonzero(flat[1:] != flat[:-1]), len(flat) - 1)
        ends.append(first * height + last + 1)
        classes.append(flat[last])
    all_ends, all_classes = np.concatenate(ends).astype(np.int64), np.concatenate(classes).astype(np.int32)
    # A run that ends with a strip may continue in the next.
    closed = np.append(all_classes[1:] != all_classes[:-1], True)
    return ClassMap(size, all_ends[closed], all_classes[closed])


def _strips(scores: Scores, size: tuple[int, int]) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """The first column of each strip of the image, and the classes of its pixels: int32 (height, columns)."""
    width, height = size
    left, right, across, _ = neighbours(scores.width, width, width)
    above, below, down, _ = neighbours(scores.height, height, height)
    wide = max(1, min(_AT_ONCE // (len(scores.values) * scores.height), _AT_ONCE // height))
    for first in range(0, width, wide):
        part = slice(first, first + wide)
        begin, end = left[part].min(), right[part].max() + 1
        near = _between(scores.values, scores.width, slice(begin, end))
        columns = near[..., left[part] - begin] * (1 - across[part])
        columns += near[..., right[part] - begin] * across[part]
        values = _between(columns.swapaxes(1, 2), scores.height, slice(None)).swapaxes(1, 2)
        top = _largest(values)
        found = top[above]
        rows, places = np.nonzero(found != top[below])
        at_once = max(1, _AT_ONCE // len(values))
        for start in range(0, len(rows), at_once):
            row, place = rows[start : start + at_once], places[start : start + at_once]
            mixed = values[:, above[row], place] * (1 - down[row]) + values[:, below[row], place] * down[row]
            found[row, place] = _largest(mixed)
        yield first, found


def _between(values: NDArray[np.float32], length: int, part: slice) -> NDArray[np.float32]:
    """`values` resized to `length` along their last axis, and of these those in `part`."""
    low, high, share, _ = neighbours(values.shape[-1], length, length)
    low, high, share = low[part], high[part], share[part]
    resized = values[..., low] * (1 - share)
    resized += values[..., high] * share
    return resized


def _largest(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """The index of the largest along the first axis: `argmax(0)`, class by class, which is much faster."""
    most, index = values[0].copy(), np.zeros(values.shape[1:], np.int32)
    for number, one in enumerate(values[1:], 1):
        index[one > most] = number
        np.maximum(most, one, out=most)
    return index
