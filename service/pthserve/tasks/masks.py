"""Masks: from the small mask of a box to the pixels of an image, as runs.

The pixels are those of torchvision's `paste_masks_in_image`, of which a detector's users take what is 0.5 or
more. There they are computed one by one; here each column of a mask has at most one change between two of the
mask's rows, so that what a mask costs follows from the width of its box, and not from its area.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pthserve.images.preprocess import neighbours

HALF = np.float32(0.5)
"""From which on a pixel is in the mask."""
_COLUMNS = 2**14
"""Columns that are computed at once."""


class Mask(BaseModel):
    """Pixels of an image, as COCO's compressed run lengths."""

    model_config = ConfigDict(defer_build=True)

    size: list[int] = Field(description="height and width of the image")
    counts: str = Field(description="run lengths, as `pycocotools.mask.decode` reads them")


class Runs(NamedTuple):
    """A mask of an image as runs of pixels, down one column after the other.

    size: (width, height) of the image. starts, ends: int64 (runs,), of the pixels that are in the mask; the
    pixel at column x and row y has the number x * height + y.
    """

    size: tuple[int, int]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def area(self) -> int:
        """Pixels in the mask."""
        return int((self.ends - self.starts).sum())

    def to_array(self) -> NDArray[np.bool_]:
        """The mask: bool (height, width)."""
        width, height = self.size
        change = np.zeros(width * height + 1, np.int8)
        change[self.starts] += 1
        change[self.ends] -= 1
        return change[:-1].cumsum(dtype=np.int8).reshape(width, height).T.astype(bool)

    def to_coco(self) -> dict[str, object]:
        """The fields of `Mask`."""
        width, height = self.size
        edges = np.stack((self.starts, self.ends), 1).ravel()
        counts = np.diff(edges, prepend=0, append=width * height)
        if len(counts) > 1 and counts[-1] == 0:
            counts = counts[:-1]
        return {"size": [height, width], "counts": _compressed(counts)}


def pasted(mask: NDArray[np.float32], box: NDArray[np.float32], size: tuple[int, int]) -> Runs:
    """The pixels of an image that are in a mask.

    Args:
        mask: float32 (side, side), 0 to 1, spread over the box.
        box: float32 (4,): left, top, right, bottom in pixels.
        size: (width, height) of the image.
    """
    side = len(mask)
    padded = np.pad(mask, 1)
    left, top, right, bottom = _expanded(box, (side + 2) / side)
    columns, rows = max(right - left + 1, 1), max(bottom - top + 1, 1)
    first, last = max(left, 0), min(right + 1, size[0])
    above, below = max(top, 0), min(bottom + 1, size[1])
    if first >= last or above >= below:
        nothing = np.zeros(0, np.int64)
        return Runs(size, nothing, nothing)
    low, high, across, _ = neighbours(len(padded), columns, columns)
    shown = slice(first - left, last - left)
    low, high, across = low[shown], high[shown], across[shown]
    down = _Rows(len(padded), rows, above - top, below - top)
    starts, ends = [], []
    for at in range(0, last - first, _COLUMNS):
        part = slice(at, at + _COLUMNS)
        values = padded[:, low[part]] * (1 - across[part]) + padded[:, high[part]] * across[part]
        column, row, opens = down.changes(values)
        number = (first + at + column) * size[1] + above + row
        starts.append(number[opens])
        ends.append(number[~opens])
    begun, ended = np.concatenate(starts), np.concatenate(ends)
    # What ends at the bottom of a column goes on at the top of the next.
    apart = ended[:-1] != begun[1:]
    whole = np.ones(min(len(begun), 1), bool)
    return Runs(size, begun[np.append(whole, apart)], ended[np.append(apart, whole)])


class _Rows:
    """Where the rows of an image, from `first` to `last` of the box's, lie between the rows of a mask."""

    def __init__(self, length: int, rows: int, first: int, last: int) -> None:
        low, high, down, _ = neighbours(length, rows, rows)
        self._low, self._high, self._down = low[first:last], high[first:last], down[first:last]
        # Rows between the same two of the mask's are a segment, along which values change evenly.
        self._begins = np.flatnonzero(np.diff(self._low, prepend=-1))
        self._ends = np.append(self._begins[1:], len(self._low)) - 1

    def changes(
        self, values: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Where columns enter and leave the mask, in the order of `Runs`: column, row, and whether it enters.

        Args:
            values: float32 (length, columns), the mask's rows.
        """
        begin, end = (self._value(values, at) >= HALF for at in (self._begins, self._ends))
        inside = self._crossings(values, begin != end)
        # Before each segment, and within it; and after the last one, where each column ends.
        before = np.vstack((np.zeros_like(end[:1]), end[:-1]))
        column: list[NDArray[np.int64]] = []
        row: list[NDArray[np.int64]] = []
        opens: list[NDArray[np.bool_]] = []
        for segments, columns, enters, rows in (
            (*np.nonzero(before != begin), begin, self._begins[:, None]),
            (*np.nonzero(begin != end), end, inside),
        ):
            column.append(columns.astype(np.int64))
            opens.append(enters[segments, columns])
            row.append(np.broadcast_to(rows, begin.shape)[segments, columns].astype(np.int64))
        (still,) = np.nonzero(end[-1])
        column.append(still)
        opens.append(np.zeros(len(still), bool))
        row.append(np.full(len(still), len(self._low), np.int64))
        all_columns, all_rows = (np.concatenate(each).astype(np.int64) for each in (column, row))
        order = np.lexsort((all_rows, all_columns))
        return all_columns[order], all_rows[order], np.concatenate(opens)[order]

    def _value(self, values: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        down = self._down[rows, None]
        return values[self._low[rows]] * (1 - down) + values[self._high[rows]] * down

    def _crossings(self, values: NDArray[np.float32], changing: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The first row of each segment and column on the other side of HALF, where that is `changing`."""
        rows = np.zeros(changing.shape, np.int64)
        for segment, (begin, end) in enumerate(zip(self._begins, self._ends, strict=True)):
            (columns,) = np.nonzero(changing[segment])
            if not len(columns):
                continue
            upper, lower = values[self._low[begin], columns], values[self._high[begin], columns]
            down = self._down[begin : end + 1]
            # Bisection on the very values that are compared: dividing would round otherwise.
            low, high = np.zeros(len(columns), np.int64), np.full(len(columns), end - begin)
            enters = lower > upper
            while (high - low > 1).any():
                middle = (low + high) // 2
                reached = (upper * (1 - down[middle]) + lower * down[middle] >= HALF) == enters
                low, high = np.where(reached, low, middle), np.where(reached, middle, high)
            rows[segment, columns] = begin + high
        return rows


def _expanded(box: NDArray[np.float32], scale: float) -> tuple[int, int, int, int]:
    """The box around a mask with a border of one: torchvision's `expand_boxes`, cut to whole pixels."""
    left, top, right, bottom = box
    half, across = np.float32(0.5), np.float32(scale)
    width, height = (right - left) * half * across, (bottom - top) * half * across
    x, y = (right + left) * half, (bottom + top) * half
    return int(x - width), int(y - height), int(x + width), int(y + height)


def _compressed(counts: NDArray[np.int64]) -> str:
    """Run lengths as text: `rleToString` of COCO's maskApi.c. Six bits a character, the lowest first."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    characters = []
    going = np.ones(len(values), bool)
    while going.any():
        bits = values & 0x1F
        values >>= 5
        more = np.where(bits & 0x10, values != -1, values != 0)
        characters.append(np.where(going, (bits | (more.astype(np.int64) << 5)) + 48, 0))
        going &= more
    flat = np.stack(characters, 1).ravel()
    return flat[flat > 0].astype(np.uint8).tobytes().decode("ascii")
