"""Answers that are long, such as masks, are computed beside the engine, and are rows like all others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pthserve.engines.base import Images, Logits
from pthserve.errors import PthserveError
from pthserve.loading.model import Model
from pthserve.options import ModelOptions
from pthserve.scoring.request import Request
from pthserve.scoring.run import score

from ..linear import SPEC, Linear, linear
from ..tasks import test_detection, test_segmentation
from ..tasks.test_masks import decoded
from .material import jpeg, photos, rows, scored


class Constant(Linear):
    """An engine that gives the same row for each image."""

    def __init__(self, row: NDArray[np.float32]) -> None:
        super().__init__(SPEC, 1)
        self.row = row

    def __call__(self, batch: Images) -> Logits:
        return np.stack([self.row] * len(batch))


def model(task: Any, labels: tuple[str, ...], row: NDArray[np.float32]) -> Model:
    return replace(
        linear(Constant(row)), task=task, labels=labels, options=ModelOptions(max_batch=4, threads=2)
    )


@pytest.fixture
def segmenting() -> Model:
    row = test_segmentation.row(test_segmentation.LEFT)
    return model(test_segmentation.TASK, test_segmentation.LABELS, row)


@pytest.fixture
def detecting() -> Model:
    row = test_detection.row((0.0, 0.0, 0.5, 1.0, 0.9, 1), (0.5, 0.0, 1.0, 1.0, 0.6, 2))
    return model(test_detection.TASK, ("background", "cat", "dog"), row)


def test_a_segmented_image_has_its_classes_with_masks_at_its_own_size(
    segmenting: Model, tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos", 9)
    scored(segmenting, source, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert len(found) == 9
    for row in found:
        assert (row["width"], row["height"], row["error"]) == (32, 24, None)
        answer = segmenting(row["key"])
        assert [(one["label"], one["pixels"]) for one in row["classes"]] == [
            (answer.labels[index], answer.pixels[index]) for index in answer.class_indices
        ]
        for one in row["classes"]:
            np.testing.assert_array_equal(decoded(one["mask"]), answer.mask(one["class_index"]))


def test_masks_may_be_left_out(segmenting: Model, tmp_path: Path) -> None:
    scored(segmenting, photos(tmp_path / "photos", 1), tmp_path / "out", query={"masks": "none"})
    (row,) = rows(tmp_path / "out")
    assert row["classes"]
    assert all(one["mask"] is None for one in row["classes"])


def test_a_class_map_that_needs_more_memory_than_there_is_is_a_row_with_an_error(
    segmenting: Model, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "large.jpg").write_bytes(jpeg(4000, 2500))
    photos(tmp_path / "photos", 1)
    scored(segmenting, tmp_path / "photos", tmp_path / "out", decode_memory=50 * 2**20)
    small, large = rows(tmp_path / "out")
    assert small["error"] is None
    assert "decode_memory" in large["error"]


def test_a_detected_object_is_a_struct_of_a_list(detecting: Model, tmp_path: Path) -> None:
    scored(detecting, photos(tmp_path / "photos", 1), tmp_path / "out", query={"threshold": "0.7"})
    (row,) = rows(tmp_path / "out")
    (one,) = row["detections"]
    assert (one["label"], one["class_index"]) == ("cat", 1)
    assert one["score"] == pytest.approx(0.9)
    assert len(one["box"]) == 4


def test_options_that_a_model_has_no_use_for_are_refused(tmp_path: Path) -> None:
    request = Request((str(photos(tmp_path / "photos", 1)),), str(tmp_path / "out"), query={"max": "3"})
    with pytest.raises(PthserveError, match="--max is not for this model, which has 5 classes"):
        score(linear(Linear(SPEC, 5)), request, lambda *_: None)


def test_results_of_other_options_are_refused(detecting: Model, tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 1)
    run: Callable[..., Any] = lambda **query: scored(detecting, source, tmp_path / "out", query=query)  # noqa: E731
    run(threshold="0.7")
    with pytest.raises(PthserveError, match=r"was begun with threshold = 0\.7, and now it is None"):
        run()
