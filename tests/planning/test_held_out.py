"""What the rule accepts keeps its promise on images that the comparison has not seen."""

import fcntl
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from benchmarks import held_out
from benchmarks.held_out import Trained

from pthserve.options import ModelOptions
from pthserve.planning.agreement import KEPT, Evidence, Rule

from ..conftest import ROOT

pytestmark = pytest.mark.slow

OPTIONS = ModelOptions(threads=2, tune_budget=0.0)
RULE = Rule.of(OPTIONS)
FOLDER = ROOT / "build" / "held-out"
DEMO = "demo"


def evidence_of(clear: int, kept: int) -> Evidence:
    """Evidence with these counts, and otherwise of answers that are equal."""
    return Evidence("openvino", "bf16", 408, 17, "photos", *(0.0,) * 4, same=1.0, clear=clear, kept=kept)


Make = Callable[[str], Trained]


@pytest.fixture(scope="module")
def make(imagenet: object) -> Make:
    """Makes a trained model; the first time, the training takes up to a minute."""

    def made(name: str) -> Trained:
        if name == DEMO:
            return held_out.demo()
        FOLDER.mkdir(parents=True, exist_ok=True)
        with (FOLDER / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return held_out.trained(name, FOLDER)

    return made


@pytest.fixture(scope="module")
def find(make: Make) -> Callable[[str], Sequence[Any]]:
    """Compares each precision of a model with PyTorch, once for all tests of it."""
    return cache(lambda name: list(held_out.findings(name, make(name), OPTIONS)))


@pytest.mark.parametrize(
    "name", [DEMO, *(pytest.param(name, marks=pytest.mark.long) for name in held_out.NAMES)]
)
def test_what_is_accepted_on_some_photos_agrees_on_others(
    name: str, make: Make, find: Callable[[str], Sequence[Any]]
) -> None:
    found = find(name)
    assert "int8" in {one.guard.precision for one in found}
    for one in found:
        assert one.guard.crops >= 200
        assert min(evidence.crops for evidence in one.held_out) >= 200
        if one.own is not None:
            assert one.own.reference_accuracy is not None
            assert one.own.reference_accuracy > 0.5  # it has learnt something: chance is 0.1
        for evidence in one.held_out if one.accepted else ():
            assert held_out.keeps(evidence, RULE), f"{one.guard.precision}: {evidence.words()}"
    accepted = {"fp32", *(one.guard.precision for one in found if one.accepted)}
    assert held_out.chosen(make(name), OPTIONS) in accepted


@pytest.mark.long
def test_clear_answers_that_change_are_within_the_promise_over_all_models(
    find: Callable[[str], Sequence[Any]],
) -> None:
    accepted = [
        evidence
        for name in (DEMO, *held_out.NAMES)
        for one in find(name)
        if one.accepted
        for evidence in one.held_out
    ]
    assert len(accepted) > len(held_out.NAMES)
    assert sum(one.kept for one in accepted) >= KEPT * sum(one.clear for one in accepted)


@pytest.mark.parametrize(("kept", "keeps"), [(193, True), (191, True), (188, False)])
def test_a_sample_breaks_the_promise_if_all_of_its_interval_is_below(kept: int, keeps: bool) -> None:
    same = evidence_of(clear=193, kept=kept)
    assert held_out.keeps(same, RULE) is keeps
    assert not held_out.keeps(replace(same, mean=2 * RULE.tolerance), RULE)


def test_the_rule_refuses_a_precision_that_changes_clear_answers(
    find: Callable[[str], Sequence[Any]],
) -> None:
    found = {one.guard.precision: one for one in find(DEMO)}
    assert not found["int8"].accepted  # quantised as a whole
    assert not held_out.keeps(found["int8"].photos, RULE)


def test_the_held_out_photos_are_not_in_the_package() -> None:
    samples = {"astronaut", "camera", "chelsea", "coffee", "hubble_deep_field", "hubble", "rocket"}
    names = {
        photo.name.rpartition("/")[2].partition(".")[0]
        for photo in held_out.held_out_photos(held_out.SMALL).photos
    }
    assert len(names) == len(held_out.PHOTOS) + 2
    assert not names & samples
