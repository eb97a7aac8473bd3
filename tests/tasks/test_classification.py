"""Probabilities, and when two sets of them agree."""

import numpy as np
import orjson
import pytest
import torch

from pthserve.tasks.classification import CLASSIFICATION, CLEAR_MARGIN, softmax

SEED = 5
TOLERANCE = 0.02
compare = CLASSIFICATION.compare


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


def test_answers_within_the_tolerance_agree() -> None:
    proof = compare(rows([0.7, 0.3], [0.1, 0.9]), rows([0.71, 0.29], [0.1, 0.9]), TOLERANCE)
    assert proof.agrees
    assert proof.difference == pytest.approx(0.01, abs=1e-6)


def test_a_probability_beyond_the_tolerance_disagrees() -> None:
    proof = compare(rows([0.7, 0.3], [0.1, 0.9]), rows([0.7, 0.3], [0.2, 0.8]), TOLERANCE)
    assert proof.disagreements == ("image 1: a probability is 0.100 off, more than 0.02",)
    assert proof.difference == pytest.approx(0.1, abs=1e-6)


def test_another_top_class_disagrees_where_the_margin_is_clear() -> None:
    reference = rows([0.5 + CLEAR_MARGIN, 0.5 - CLEAR_MARGIN])
    assert compare(reference[:, ::-1], reference, 1).disagreements == ("image 0: class 1, and not 0",)


def test_another_top_class_agrees_where_the_margin_is_not_clear() -> None:
    reference = rows([0.5 + CLEAR_MARGIN / 3, 0.5 - CLEAR_MARGIN / 3])
    assert compare(reference[:, ::-1], reference, 1).agrees


def test_what_is_no_number_never_agrees() -> None:
    proof = compare(rows([np.nan, np.nan]), rows([0.5, 0.5]), 1)
    assert proof.disagreements == ("image 0: its probabilities are not numbers",)
    assert proof.difference == np.inf


def test_another_number_of_classes_disagrees() -> None:
    assert compare(rows([0.5, 0.5]), rows([1]), 1).disagreements == ("2 classes, and not 1",)


def test_one_class_agrees_with_itself() -> None:
    assert compare(rows([1]), rows([1]), 0).agrees


# --- the JSON


def test_the_answer_has_exactly_the_fields_that_its_model_describes() -> None:
    answer = CLASSIFICATION.answer(rows([2, 1, 0])[0], ("cat", "dog", "fox"))
    fields = orjson.loads(orjson.dumps(answer.to_dict(2), option=orjson.OPT_SERIALIZE_NUMPY))
    described = CLASSIFICATION.answer_model.model_validate(fields, strict=True, extra="forbid")
    assert described.model_dump() == fields


def test_the_example_of_the_schema_is_an_answer() -> None:
    (example,) = CLASSIFICATION.answer_model.model_json_schema()["examples"]
    assert CLASSIFICATION.answer_model.model_validate(example).model_dump() == example
