"""How an engine's answers compare with those of a reference, and the rule that decides whether they agree."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pthserve.engines.cpu import instruction_sets
from pthserve.planning.agreement import CLEAR, UNLIKE, Evidence, Reference, Rule, compare, examine, scores
from pthserve.planning.crops import COUNT, Origin, of_package
from pthserve.tasks.classification import CLASSIFICATION
from pthserve.tasks.embedding import EmbeddingTask

from .one_layer import SPEC, TOLERANCE, engine

RULE = Rule(TOLERANCE)
OWN = Origin(200, "validation images", own=True)
GOOD = Evidence("openvino", "bf16", 208, 6, "sample images", 0.01, 0.015, 0.03, 0.08, 0.95, 150, 150)


def rows(*values: float) -> NDArray[np.float32]:
    """Probabilities of two classes, of which the first is given."""
    return np.array([[value, 1 - value] for value in values], np.float32)


def compared(found: NDArray[np.float32], expected: NDArray[np.float32], origin: Origin = OWN) -> Evidence:
    return compare(CLASSIFICATION, engine(), found, Reference(expected, origin))


def test_an_engine_agrees_with_itself_and_not_with_another() -> None:
    crops = of_package((), SPEC)
    reference = Reference(scores(CLASSIFICATION, engine(), crops), crops.origin)
    same = examine(CLASSIFICATION, engine(), crops, reference)
    assert same.refusal(RULE) == ""
    assert same.largest < 1e-5
    assert (same.crops, same.photos, same.source) == (COUNT, 6, "sample images")
    assert (same.engine, same.precision, same.cpu) == ("torch", "fp32", instruction_sets())
    assert same.library.startswith("torch ")
    other = examine(CLASSIFICATION, engine(noise=0.5), crops, reference)
    assert "the tolerance is 0.02" in other.refusal(RULE)
    assert other.mean < other.p95 < other.largest


def test_a_refusal_at_fp32_says_what_else_to_use() -> None:
    different = replace(GOOD, bound=0.03)
    assert different.refusal(RULE).endswith("the tolerance is 0.02")
    assert (
        replace(different, precision="fp32").refusal(RULE).endswith("serve the weights with --engine torch")
    )


def test_the_figures_are_those_of_the_differences() -> None:
    expected = rows(*np.linspace(0.5, 1, 200))
    found = expected + np.array([[-1, 1]], np.float32) * np.linspace(0, 0.04, 200, dtype=np.float32)[:, None]
    evidence = compared(found, expected)
    assert evidence.mean == pytest.approx(0.02, abs=1e-4)
    assert evidence.p95 == pytest.approx(0.038, abs=1e-4)
    assert evidence.largest == pytest.approx(0.04, abs=1e-4)
    assert evidence.clear == int((2 * expected[:, 0] - 1 > CLEAR).sum())
    assert evidence.kept == evidence.clear
    assert evidence.same == pytest.approx((found[:, 0] >= found[:, 1]).mean())


@pytest.mark.slow
def test_the_bound_covers_the_mean_of_photos_like_these_19_times_of_20() -> None:
    random = np.random.default_rng(11)
    photos, crops = 30, 7
    missed = 0
    for _ in range(400):
        means = random.gamma(4, 0.0025, photos)  # of all photos: 0.01
        off = np.abs(random.normal(means, 0.002, (crops, photos))).ravel().astype(np.float32)
        expected = np.full((len(off), 2), 0.5, np.float32)
        evidence = compared(expected + off[:, None], expected, Origin(photos, "validation images", own=True))
        missed += evidence.bound < 0.01
    assert 4 <= missed <= 45  # 20 of 400 are expected; a skewed distribution is missed more often


def test_crops_of_few_photos_say_less_than_those_of_many() -> None:
    expected = rows(*[0.5] * 200)
    off = np.tile(np.array([0.001, 0.03], np.float32), 100)[:, None] * np.array([[1, -1]], np.float32)
    few = compared(expected + off, expected, Origin(2, "validation images", own=True))
    many = compared(expected + off, expected, Origin(200, "validation images", own=True))
    assert few.mean == many.mean
    assert few.bound > 1.5 * many.bound


def test_photos_of_the_package_have_a_larger_margin() -> None:
    expected = rows(*[0.5] * 200)
    found = expected + np.array([[0.01, -0.01]], np.float32)
    assert compared(found, expected).bound == pytest.approx(0.01, abs=1e-6)
    package = compared(found, expected, Origin(200, "sample images"))
    assert package.bound == pytest.approx(UNLIKE * 0.01, abs=1e-6)


def test_the_rule_is_the_mean_with_a_margin_and_the_clear_decisions() -> None:
    assert GOOD.refusal(RULE) == ""
    assert GOOD.refusal(Rule(0.014)).startswith("on 208 crops a difference is 0.0100 on average")
    assert replace(GOOD, kept=149).refusal(RULE) == ""
    assert replace(GOOD, kept=148).refusal(RULE).startswith("the decision is another on 2 of 150 crops")
    assert replace(GOOD, clear=0, kept=0).refusal(RULE) == ""
    assert replace(GOOD, same=None, clear=None, kept=None).refusal(RULE) == ""


def test_answers_that_are_not_numbers_or_of_another_shape_never_agree() -> None:
    expected = rows(*[0.9] * 200)
    broken = expected.copy()
    broken[7] = np.nan
    for found in (broken, expected[:, :1]):
        evidence = compared(found, expected)
        assert "not numbers" in evidence.refusal(Rule(1.0))
        assert "not numbers" in evidence.refusal(Rule(1.0, accuracy_drop=1.0))
        assert np.isfinite(evidence.largest)  # JSON has no infinity


def test_a_task_without_decisions_has_only_differences() -> None:
    vectors = np.eye(4, dtype=np.float32)
    evidence = compare(EmbeddingTask(4), engine(), vectors, Reference(vectors, OWN))
    assert (evidence.mean, evidence.same, evidence.clear, evidence.kept) == (0, None, None, None)
    assert evidence.refusal(RULE) == ""


# --- accuracy


LABELLED = Origin(100, "validation images", own=True, labels=(0,) * 100)


def test_accuracy_is_compared_where_the_classes_are_known() -> None:
    expected = rows(*[0.9] * 80, *[0.4] * 20, *[0.9] * 108)
    found = rows(*[0.9] * 78, *[0.4] * 22, *[0.1] * 108)  # what is not a whole photo has no class
    evidence = compared(found, expected, LABELLED)
    assert (evidence.reference_accuracy, evidence.accuracy) == (0.8, 0.78)
    assert compared(found, expected).accuracy is None


def test_a_maximum_drop_in_accuracy_decides_instead_of_the_tolerance() -> None:
    evidence = replace(GOOD, mean=0.3, bound=0.4, kept=0, reference_accuracy=0.8, accuracy=0.78, photos=100)
    assert evidence.refusal(RULE)
    assert evidence.refusal(Rule(TOLERANCE, accuracy_drop=0.02)) == ""
    assert evidence.refusal(Rule(TOLERANCE, accuracy_drop=0.015)) == (
        "the accuracy on 100 images drops by 2.00 % to 78.00 %; at most 1.5 % is allowed"
    )
    assert replace(evidence, accuracy=0.9).refusal(Rule(TOLERANCE, accuracy_drop=0.0)) == ""
    assert "--validation" in GOOD.refusal(Rule(TOLERANCE, accuracy_drop=0.02))


def test_the_figures_in_words() -> None:
    assert GOOD.words() == (
        "mean difference 0.0100 (p95 0.0300, largest 0.0800), same decision on 95.0 %, on 150 of 150 where "
        "it is clear; on 208 crops of 6 sample images"
    )
