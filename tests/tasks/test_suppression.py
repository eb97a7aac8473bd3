"""Suppression: the boxes that stay are those of torchvision, class by class, within a bound."""

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from pthserve.tasks import suppression
from pthserve.tasks.objects import Table


def boxes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of three classes that overlap often, with their scores and classes."""
    random = np.random.default_rng(seed)
    corner, size = random.random((count, 2)) * 60, random.random((count, 2)) * 40 + 1
    made = np.concatenate([corner, corner + size], 1).astype(np.float32)
    return made, random.random(count).astype(np.float32), random.integers(0, 3, count)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.45, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_the_boxes_that_stay_are_those_of_torchvision(overlap: float, seed: int) -> None:
    found = boxes(300, seed)
    expected = batched_nms(*map(torch.from_numpy, found), overlap)
    assert suppression.kept(*found, overlap).tolist() == expected.tolist()
    assert suppression.kept(*found, overlap, 5).tolist() == expected.tolist()[:5]


def test_without_an_overlap_all_boxes_stay_best_first() -> None:
    found = boxes(50, 0)
    assert suppression.kept(*found, 1.0).tolist() == np.argsort(-found[1], kind="stable").tolist()
    assert suppression.kept(*boxes(0, 0), 0.5).tolist() == []


def test_more_boxes_than_the_bound_cost_no_more() -> None:
    """The best of them are compared; those beyond the bound would cost time and memory without end."""
    found = boxes(3 * suppression.CANDIDATES, 0)
    best = np.argsort(-found[1], kind="stable")[: suppression.CANDIDATES]
    expected = best[batched_nms(*(torch.from_numpy(each[best]) for each in found), 0.45).numpy()]
    assert suppression.kept(*found, 0.45).tolist() == expected.tolist()


def test_boxes_without_an_area_are_dropped_for_nobody() -> None:
    point = np.array([[1, 1, 1, 1], [1, 1, 1, 1]], np.float32)
    found = point, np.array([0.9, 0.8], np.float32), np.zeros(2, int)
    assert suppression.kept(*found, 0.5).tolist() == batched_nms(*map(torch.from_numpy, found), 0.5).tolist()


def test_a_table_answers_the_same_at_each_threshold_as_if_it_alone_had_been_asked_for() -> None:
    """Boxes are dropped for better ones alone, so a threshold may be applied before or after."""
    made, scores, classes = boxes(200, 1)
    order = np.argsort(-scores)
    rows = np.concatenate([made / 100, scores[:, None], classes[:, None]], 1)[order].astype(np.float32)
    table = Table(most=200, overlap=0.45, objects=40)
    found = table.read(rows.ravel(), ("a", "b", "c"), (100, 100))
    for threshold in (0.2, 0.5, 0.9):
        above = found.at(threshold)
        chosen = scores >= threshold
        expected = batched_nms(
            *(torch.from_numpy(each[chosen]) for each in (made, scores, classes)), 0.45
        ).numpy()[:40]
        np.testing.assert_allclose(above.boxes, made[chosen][expected], atol=1e-4)
        np.testing.assert_allclose(above.scores, scores[chosen][expected])
