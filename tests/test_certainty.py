"""What was inferred, as users read it."""

import json

import pytest

from pthserve.certainty import Inferred, Origin


@pytest.mark.parametrize("origin", [Origin.DEFAULT, Origin.ASSUMED])
def test_what_may_be_wrong_names_the_line_that_settles_it(origin: Origin) -> None:
    inferred = Inferred("task", "classification", origin, "task: multilabel")
    assert inferred.uncertain
    assert str(inferred).endswith("; state it in model.yaml, such as `task: multilabel`")


@pytest.mark.parametrize("origin", [Origin.CARD, Origin.FILE, Origin.GOLDEN])
def test_what_is_stated_needs_no_advice(origin: Origin) -> None:
    inferred = Inferred("task", "classification", origin, "task: multilabel")
    assert not inferred.uncertain
    assert "model.yaml" not in str(inferred)


def test_it_is_plain_json() -> None:
    inferred = Inferred("labels", "10 of the checkpoint's `classes`", Origin.FILE)
    assert json.loads(json.dumps(inferred.to_dict())) == {
        "subject": "labels",
        "value": "10 of the checkpoint's `classes`",
        "origin": "file",
        "setting": "",
    }
