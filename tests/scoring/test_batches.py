"""batches: how many images are full, and what is taken of those that wait."""

from dataclasses import replace

import numpy as np
import pytest

from pthserve.options import ModelOptions
from pthserve.scoring.batches import Batches, full_batch

from ..linear import SPEC, Linear, linear


def collected(*sides: int, full: int) -> Batches[int]:
    """Square images of these sides in this order; each belongs to its place in it."""
    batches: Batches[int] = Batches(full)
    for place, side in enumerate(sides):
        batches.add(place, np.zeros((side, side, 3), np.uint8))
    return batches


def test_images_are_taken_in_full_batches_of_one_shape_in_their_order() -> None:
    batches = collected(8, 9, 9, 8, 9, 9, full=3)
    assert [one.of for one in batches.take(partial=False)] == [1, 2, 4]
    assert batches.take(partial=False) == []
    assert len(batches) == 3


def test_what_is_not_full_is_taken_only_on_demand_the_oldest_first() -> None:
    batches = collected(8, 9, 8, full=3)
    assert batches.take(partial=False) == []
    assert [one.of for one in batches.take(partial=True)] == [0, 2]
    assert [one.of for one in batches.take(partial=True)] == [1]
    assert batches.take(partial=True) == []


def test_a_full_batch_goes_before_older_images_of_another_shape() -> None:
    batches = collected(8, 9, 9, full=2)
    assert [one.of for one in batches.take(partial=True)] == [1, 2]


def test_integers_and_floating_point_numbers_of_one_shape_do_not_share_a_batch() -> None:
    batches: Batches[str] = Batches(2)
    batches.add("pixels", np.zeros((3, 8, 8), np.uint8))
    batches.add("tensor", np.zeros((3, 8, 8), np.float32))
    assert batches.take(partial=False) == []


@pytest.mark.parametrize(
    ("side", "planned", "asked", "expected"),
    [
        (224, 1, None, 16),
        (512, 1, None, 5),
        (2048, 1, None, 1),
        (224, 32, None, 32),
        (2048, 8, None, 8),
        (224, 1, 3, 3),
    ],
)
def test_a_full_batch_has_as_many_images_as_fit_and_at_least_those_of_the_plan(
    side: int, planned: int, asked: int | None, expected: int
) -> None:
    model = linear(Linear(SPEC, 5))
    model = replace(
        model,
        spec=replace(model.spec, crop=(side, side)),
        plan=replace(model.plan, max_batch=planned),
        options=ModelOptions(max_batch=asked),
    )
    assert full_batch(model) == expected
