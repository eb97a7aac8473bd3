"""YAML and JSON of others is parsed within bounds, and what is beyond them is refused in a moment."""

import json

import pytest

from pthserve.files import documents
from pthserve.files.documents import DEPTH, LENGTH, parse_json, parse_yaml


def test_plain_documents_are_read_as_by_pyyaml() -> None:
    text = "name: cats\nlabels: [a, 'no', 1]\nkwargs: {depth: 3, wide: false, none: null, share: 0.5}\n"
    assert parse_yaml(text) == {
        "name": "cats",
        "labels": ["a", "no", 1],
        "kwargs": {"depth": 3, "wide": False, "none": None, "share": 0.5},
    }


@pytest.mark.slow
def test_the_labels_of_imagenet_21k_fit_with_their_indices() -> None:
    labels = {f"n{number:08}": number for number in range(21_843)}
    assert parse_yaml(json.dumps({"labels": labels})) == {"labels": labels}


def test_the_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "NODES", 100)
    assert len(parse_yaml(f"a: [{'x,' * 97}]")["a"]) == 97
    for text in (f"a: [{'x,' * 98}]", "".join(f"k{number}: x\n" for number in range(51))):
        with pytest.raises(ValueError, match=r"line \d+: there are more than 100 values"):
            parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x]\nb: *a\n", r"line 2: the alias \*a is not allowed here"),
        ("a: &a [*a]\n", r"line 1: the alias \*a is not allowed"),
        ("a: &a {b: 1}\nc: {<<: *a}\n", r"line 2: the alias \*a is not allowed"),
        (f"a: {'[' * 20_000}", f"nested more than {DEPTH} deep"),
        (f"a: {'{b: ' * 20_000}", f"nested more than {DEPTH} deep"),
        (f"{'- ' * 20_000}", f"nested more than {DEPTH} deep"),
        (f"a: {'x' * (LENGTH + 1)}", f"a value has more than {LENGTH} characters"),
        (f"a: 1{':59' * 3000}", "cannot be parsed|"),
        (f"a: {'9' * 5000}", r"cannot be parsed: Exceeds the limit \(4300 digits\)"),
        ('a: "\\ud83d"', "line 1: .*unpaired surrogate"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!timestamp x", "cannot be parsed: "),
        ("a: !!bool x", "cannot be parsed: "),
        ("a: !!int x", "cannot be parsed: "),
        ("a: [b", "expected ',' or ']'"),
        ("a: \0", "cannot be parsed: unacceptable character"),
        ("'" + "x\x1b" * 5000, "cannot be parsed"),
    ],
)
def test_yaml_beyond_the_bounds_is_refused_with_its_line(text: str, message: str) -> None:
    if message.endswith("|"):  # a number of many digits is a number
        assert isinstance(parse_yaml(text)["a"], int)
        return
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_an_emoji_in_jsons_escapes_is_an_emoji() -> None:
    assert parse_yaml(json.dumps({"cat \U0001f431": ["\U0001f431"]})) == {"cat \U0001f431": ["\U0001f431"]}


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "{", "", "[1,]", '"' + "x" * 10**6]
)
def test_json_that_cannot_be_parsed_is_refused_in_a_few_words(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be parsed: ") as caught:
        parse_json(text)
    assert len(str(caught.value)) < 400
