"""Masks: the pixels of torchvision's `paste_masks_in_image`, as runs and as COCO writes them."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.models.detection.roi_heads import paste_masks_in_image

from pthserve.tasks.masks import Runs, pasted


@pytest.mark.parametrize("seed", range(40))
def test_the_pixels_are_torchvision_s(seed: int) -> None:
    dice = np.random.default_rng(seed)
    width, height = (int(side) for side in dice.integers(1, 300, 2))
    box = (np.sort(dice.uniform(0, 1, (2, 2)), 0).ravel() * [width, height, width, height]).astype(np.float32)
    if seed % 5 == 0:
        box = np.array([0, 0, width, height], np.float32)
    mask = dice.uniform(0, 1, (28, 28)).astype(np.float32)
    if seed % 7 == 0:
        mask[:] = seed % 2
    expected = paste_masks_in_image(
        torch.from_numpy(mask)[None, None], torch.from_numpy(box)[None], (height, width)
    )
    runs = pasted(mask, box, (width, height))
    np.testing.assert_array_equal(runs.to_array(), expected[0, 0].numpy() >= 0.5)
    assert runs.area == runs.to_array().sum()
    np.testing.assert_array_equal(decoded(runs.to_coco()), runs.to_array())


def test_a_box_outside_the_image_has_no_pixels() -> None:
    runs = pasted(np.ones((28, 28), np.float32), np.array([50, 50, 60, 60], np.float32), (40, 30))
    assert runs.area == 0
    assert runs.to_coco() == {"size": [30, 40], "counts": "`U1"}  # 1200 pixels outside


def test_a_mask_over_a_large_image_costs_what_its_width_costs() -> None:
    """50 million pixels at one byte each would be 48 MiB."""
    runs = pasted(np.ones((28, 28), np.float32), np.array([0, 0, 8000, 6000], np.float32), (8000, 6000))
    assert runs.area > 0.9 * 8000 * 6000
    assert runs.starts.nbytes + runs.ends.nbytes < 2**18


def test_runs_of_a_whole_image_are_one() -> None:
    runs = Runs((3, 2), np.array([0]), np.array([6]))
    assert runs.to_coco()["counts"] == "06"


def decoded(coco: dict[str, object]) -> NDArray[np.bool_]:
    """As `rleFrString` and `rleDecode` of COCO's maskApi.c."""
    text, size = str(coco["counts"]), coco["size"]
    assert isinstance(size, list)
    height, width = size
    counts: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            character = ord(text[place]) - 48
            value |= (character & 0x1F) << (5 * shift)
            more = bool(character & 0x20)
            place += 1
            shift += 1
            if not more and character & 0x10:
                value |= -1 << (5 * shift)
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(width, height).T
