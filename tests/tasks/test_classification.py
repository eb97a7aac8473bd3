"""Probabilities, and when two sets of them agree."""

import numpy as np
import orjson
import pytest
import torch

from pthserve.tasks.classification import CLASSIFICATION, softmax

SEED = 5
TOLERANCE = 0.02


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


# --- probabilities


def test_softmax_is_torch_s() -> None:
    logits = np.random.default_rng(SEED).normal(0, 5, (7, 11)).astype(np.float32)
    expected = torch.from_numpy(logits).softmax(-1).numpy()
    assert np.allclose(softmax(logits), expected, atol=1e-7)
    assert np.allclose(softmax(logits[0]), expected[0], atol=1e-7)
    assert softmax(logits).dtype == np.float32


def test_softmax_of_large_logits_is_finite() -> None:
    assert softmax(rows([3e38, -3e38, 0])).tolist() == [[1, 0, 0]]


def test_softmax_of_what_is_no_number_is_none_and_warns_of_nothing() -> None:
    assert np.isnan(softmax(rows([np.inf, 0], [np.nan, 0]))).all()


# --- two sets of answers


def test_the_difference_of_an_image_is_the_largest_of_a_probability() -> None:
    found = CLASSIFICATION.agree(rows([0.7, 0.3], [0.1, 0.9]), rows([0.71, 0.29], [0.3, 0.7]), 0.1)
    assert found.differences == pytest.approx([0.01, 0.2], abs=1e-6)


def test_a_top_class_is_clear_where_it_leads_by_more_than_the_margin() -> None:
    reference = rows([0.6, 0.3, 0.1], [0.45, 0.4, 0.15], [0.1, 0.2, 0.7])
    other = rows([0.3, 0.6, 0.1], [0.4, 0.45, 0.15], [0.1, 0.2, 0.7])
    found = CLASSIFICATION.agree(other, reference, 0.1)
    assert found.same is not None
    assert found.clear is not None
    assert found.kept is not None
    assert found.same.tolist() == [False, False, True]
    assert found.clear.tolist() == [True, False, True]
    assert found.kept.tolist() == [False, True, True]


def test_what_is_no_number_is_infinitely_far_off_and_no_decision_is_the_same() -> None:
    found = CLASSIFICATION.agree(rows([np.nan, np.nan]), rows([0.9, 0.1]), 0.1)
    assert found.differences == np.inf
    assert found.same is not None
    assert not found.same.any()
    assert found.kept is not None
    assert not found.kept.any()


def test_a_model_of_one_class_has_no_clear_decision() -> None:
    found = CLASSIFICATION.agree(rows([1], [1]), rows([1], [1]), 0.1)
    assert found.clear is not None
    assert not found.clear.any()


# --- the JSON


def test_the_answer_has_exactly_the_fields_that_its_model_describes() -> None:
    answer = CLASSIFICATION.answer(rows([2, 1, 0])[0], ("cat", "dog", "fox"))
    fields = orjson.loads(orjson.dumps(answer.to_dict(2), option=orjson.OPT_SERIALIZE_NUMPY))
    described = CLASSIFICATION.answer_model.model_validate(fields, strict=True, extra="forbid")
    assert described.model_dump() == fields


def test_the_example_of_the_schema_is_an_answer() -> None:
    (example,) = CLASSIFICATION.answer_model.model_json_schema()["examples"]
    assert CLASSIFICATION.answer_model.model_validate(example).model_dump() == example
