"""Infer: the outputs are those that were asked for, in the shape that was asked for."""

from collections.abc import Sequence

import numpy as np
import pytest

from pthserve.errors import MalformedRequest
from pthserve.inference_protocol import infer
from pthserve.inference_protocol.infer import (
    Wanted,
    check,
    everything,
    timeout,
    wanted,
)
from pthserve.inference_protocol.tensors import Output
from pthserve.tasks.classification import CLASSIFICATION, Classification

LABELS = ("cat", "dog", "snö")


FORMS = CLASSIFICATION.tensor_forms(len(LABELS))


def answer(*logits: float) -> Classification:
    return CLASSIFICATION.answer(np.array(logits, np.float32), LABELS)


def outputs(answers: Sequence[Classification], asked: Sequence[Wanted]) -> list[Output]:
    return infer.outputs(CLASSIFICATION, answers, LABELS, asked)


BATCH = [answer(0, 3, 1), answer(1, 0, 2)]


def test_everything_is_every_output_there_is() -> None:
    found = {output.name: output for output in outputs(BATCH, everything(FORMS, binary=False))}
    assert [(o.name, o.datatype, o.shape) for o in found.values()] == [
        (form.name, form.datatype, (2, *form.shape[1:])) for form in FORMS
    ]
    np.testing.assert_array_equal(found["logits"].values, [[0, 3, 1], [1, 0, 2]])
    np.testing.assert_allclose(np.asarray(found["probabilities"].values).sum(axis=1), 1, rtol=1e-6)
    assert found["label"].elements() == ["dog", "snö"]
    assert list(found["class_index"].elements()) == [1, 2]


def test_outputs_come_in_the_order_they_are_asked_for() -> None:
    assert [o.name for o in outputs(BATCH, [Wanted("label"), Wanted("logits")])] == [
        "label",
        "logits",
    ]


def test_a_classification_gives_value_index_and_label_of_the_best() -> None:
    (found,) = outputs(BATCH, [Wanted("logits", classification=2)])
    assert (found.datatype, found.shape) == ("BYTES", (2, 2))
    assert found.elements() == ["3.000000:1:dog", "1.000000:2:snö", "2.000000:2:snö", "1.000000:0:cat"]


def test_a_classification_of_more_classes_than_there_are_gives_them_all() -> None:
    (found,) = outputs(BATCH, [Wanted("probabilities", classification=2**62)])
    assert found.shape == (2, 3)


@pytest.mark.parametrize(
    "asked",
    [
        [Wanted("fc")],
        [Wanted("label"), Wanted("label")],
        [Wanted("label", classification=1)],
        [Wanted("class_index", classification=1)],
    ],
    ids=["unknown", "twice", "classified label", "classified index"],
)
def test_an_output_that_cannot_be_is_malformed(asked: list[Wanted]) -> None:
    with pytest.raises(MalformedRequest):
        check(asked, FORMS)


def test_the_parameters_of_an_output_are_read() -> None:
    assert wanted("logits", {"classification": 3, "binary_data": True}, binary=False) == Wanted(
        "logits", 3, True
    )
    assert wanted("logits", {"another": "one"}, binary=True) == Wanted("logits", 0, True)
    assert wanted("logits", {"binary_data": False}, binary=True) == Wanted("logits")


@pytest.mark.parametrize(
    "parameters",
    [
        {"classification": -1},
        {"classification": "3"},
        {"classification": True},
        {"classification": 2.5},
        {"binary_data": "yes"},
        {"shared_memory_region": "x"},
    ],
)
def test_a_parameter_that_cannot_be_is_malformed(parameters: dict[str, object]) -> None:
    with pytest.raises(MalformedRequest):
        wanted("logits", parameters, binary=False)


def test_the_timeout_is_in_microseconds() -> None:
    assert timeout({"timeout": 250_000}) == 0.25
    assert timeout({}) is None
    assert timeout({"timeout": 0}) is None
    for wrong in (-1, "1", True, 1.5):
        with pytest.raises(MalformedRequest):
            timeout({"timeout": wrong})
