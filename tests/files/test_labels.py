"""The forms that labels are kept in, and what is refused because it could be read in two ways."""

import json
from typing import Any

import pytest

from pthserve.files import labels

ANIMALS = ("cat", "dog", "fish")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "cat\ndog\nfish\n\n\n"),
        ("labels.txt", "0 cat\n1 dog\n2 fish\n"),
        ("labels.txt", "0: cat\n1: dog\n2: fish"),
        ("labels.txt", "1. cat\n2. dog\n3. fish"),
        ("labels.names", "cat\ndog\nfish"),
        ("labels.csv", "id,name\n0,cat\n1,dog\n2,fish\n"),
        ("labels.csv", "name,id\nfish,2\ncat,0\ndog,1\n"),
        ("labels.csv", "class_name\ncat\ndog\nfish\n"),
        ("labels.csv", "2,fish\n0,cat\n1,dog\n"),
        ("labels.csv", "cat\ndog\nfish\n"),
        ("labels.csv", 'index;label;weight\n0;"cat";3\n1;dog;3\n2;fish;3\n'),
        ("labels.tsv", "idx\tlabel\n0\tcat\n1\tdog\n2\tfish\n"),
        ("index.json", json.dumps(["cat", "dog", "fish"])),
        ("index.json", json.dumps({"0": "cat", "2": "fish", "1": "dog"})),
        ("index.json", json.dumps({"dog": 1, "cat": 0, "fish": 2})),
        (
            "imagenet_class_index.json",
            json.dumps({"0": ["n01", "cat"], "1": ["n02", "dog"], "2": ["n03", "fish"]}),
        ),
        (
            "config.json",
            json.dumps(
                {
                    "model_type": "vit",
                    "id2label": {"0": "cat", "1": "dog", "2": "fish"},
                    "label2id": {"x": 0, "dog": 1, "fish": 2},
                }
            ),
        ),
        ("config.json", json.dumps({"label2id": {"cat": 0, "dog": 1, "fish": 2}})),
        ("classes.json", json.dumps({"classes": ["cat", "dog", "fish"]})),
        ("classes.json", json.dumps({"mapping": 1, "names": {"0": "cat", "1": "dog", "2": "fish"}})),
        (
            "annotations.json",
            json.dumps(
                {
                    "categories": [
                        {"id": 1, "name": "dog"},
                        {"id": 0, "name": "cat"},
                        {"id": 2, "name": "fish"},
                    ]
                }
            ),
        ),
        ("data.yaml", "path: /data\nnames:\n  0: cat\n  1: dog\n  2: fish\n"),
        ("data.yaml", "names: [cat, dog, fish]"),
    ],
)
def test_well_known_forms_are_read(name: str, text: str) -> None:
    assert labels.read(name, text) == ANIMALS


FOLDERS = {str(name): index for index, name in enumerate(sorted(map(str, range(11))))}
"""`class_to_idx` of ImageFolder over folders 0 to 10, which it sorts as text: 0, 1, 10, 2, ..."""


def test_folders_of_numbers_are_read_by_the_one_reading_that_is_possible() -> None:
    assert labels.read("c.json", json.dumps({"1": 0, "10": 1, "2": 2})) == ("1", "10", "2")
    assert labels.read("c.json", json.dumps({"0": "7", "1": "0", "2": "1"})) == ("7", "0", "1")
    assert labels.read("c.json", json.dumps({"0": 0, "1": 1})) == ("0", "1")
    assert labels.read("c.json", json.dumps({"0": "1", "1": "0"})) == ("1", "0")


def test_folders_of_numbers_that_can_be_read_in_two_ways_are_refused_with_the_way_to_say_it() -> None:
    with pytest.raises(ValueError, match=r"labels: \{file: FILE, kind: class_to_idx\}.*or idx_to_class"):
        labels.read("classes.json", json.dumps(FOLDERS))


@pytest.mark.parametrize(("name", "kind"), [("class_to_idx.json", None), ("classes.json", "class_to_idx")])
def test_folders_of_numbers_are_right_where_the_name_or_the_card_says_what_they_are(
    name: str, kind: str | None
) -> None:
    found = labels.read(name, json.dumps(FOLDERS), kind)
    assert found == ("0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9")
    assert found[7] == "6"


def test_the_other_kind_gives_the_other_labels() -> None:
    found = labels.read("classes.json", json.dumps(FOLDERS), "idx_to_class")
    assert found[7] == "8"


def test_a_card_names_a_file_and_its_kind() -> None:
    assert labels.of_card("labels.txt") == labels.LabelFile("labels.txt")
    assert labels.of_card({"file": "c.json", "kind": "class_to_idx"}) == labels.LabelFile(
        "c.json", "class_to_idx"
    )
    assert labels.of_card({"cat": 0, "dog": 1}) == ("cat", "dog")
    with pytest.raises(ValueError, match="`kind` is allowed; it is class_to_idx or idx_to_class"):
        labels.of_card({"file": "c.json", "kind": "x"})
    with pytest.raises(ValueError, match="beside `file`, only `kind` is allowed"):
        labels.of_card({"file": "c.json", "sort": "x"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.json", '["cat", true]', "must be text, and True is not"),
        ("l.json", '["cat", ""]', "must not be empty"),
        ("l.json", '{"a": 0, "b": 2}', "must use the class indices 0 to 1"),
        ("l.json", "3", "must be a list of labels, or a mapping of index to label or label to index"),
        ("l.json", "{}", "must be a list of labels"),
        (
            "l.json",
            '{"classes": {"classes": {"classes": {"classes": ["a"]}}}}',
            "must use the class indices 0 to 0",
        ),
        ("l.json", '[{"color": "red"}]', "must be a list of labels"),
        ("l.json", "[" * 100_000, "nested too deeply"),
        ("l.yaml", "[yes, no]", "YAML reads it as True; put it in quotes"),
        ("l.txt", "cat\n\ndog", "line 2: must not be empty; write one label per line"),
        ("l.csv", "a,b,c\n1,2,3", "must have a column named name, label, class or class_name"),
        ("l.csv", "id,name\n0,cat\n1", "row 3: must have 2 columns"),
        ("l.csv", "id,name\n0,cat\n2,dog", "must use the class indices 0 to 1"),
        ("l.csv", "", "must have a column named"),
    ],
)
def test_what_is_not_read_is_refused_in_the_words_of_its_format(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        labels.read(name, text)
    assert name.endswith(".yaml") or "YAML" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"class_to_idx": {"cat": 0, "dog": 1, "fish": 2}}, "class_to_idx"),
        ({"classes": ["cat", "dog", "fish"]}, "classes"),
        ({"meta": {"CLASSES": ["cat", "dog", "fish"]}}, "meta.CLASSES"),
        ({"names": {"0": "cat", "1": "dog", "2": "fish"}}, "names"),
        ({"config": {"id2label": {"0": "cat", "1": "dog", "2": "fish"}}}, "config.id2label"),
        ({"hyper_parameters": {"class_names": ["cat", "dog", "fish"]}}, "hyper_parameters.class_names"),
    ],
)
def test_labels_are_found_beside_the_weights(metadata: dict[str, Any], key: str) -> None:
    assert labels.of_metadata({"epoch": 3, **metadata}, 3) == (ANIMALS, key)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"classes": ["cat", "dog"]},
        {"classes": 3},
        {"names": {"a": "b", "c": "d", "e": "f"}},
        {"args": 3},
        {"labels": [[], [], []]},
    ],
)
def test_what_does_not_number_the_classes_is_no_labels(metadata: dict[str, Any]) -> None:
    assert labels.of_metadata(metadata, 3) is None


def test_the_folders_of_a_checkpoint_are_never_read_the_other_way() -> None:
    found = labels.of_metadata({"class_to_idx": FOLDERS}, 11)
    assert found is not None
    assert found[0][7] == "6"
