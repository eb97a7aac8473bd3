"""What `model.yaml` may say, what is taken where it says nothing, and what is said where it is wrong."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pthserve.errors import CardError, WeightsError
from pthserve.files import card
from pthserve.files.card_fields import (
    Fields,
    FirstLayer,
    GoldenImage,
    GoldenObject,
    Head,
    Preprocessing,
)
from pthserve.files.golden import Golden
from pthserve.files.output_fields import GraphOutputs as GraphOutputFields
from pthserve.files.output_fields import OutputFields
from pthserve.files.stated_task import GraphOutputs, NamedOutput, StatedTask
from pthserve.images.spec import Spec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder named `cats` with one weights file and one image."""
    made = tmp_path / "cats"
    made.mkdir()
    (made / "cats.pth").write_bytes(b"weights")
    (made / "tom.jpg").write_bytes(b"image")
    return made


def write(folder: Path, text: str) -> Path:
    (folder / card.FILE).write_text(text)
    return folder


# --- without a card


def test_a_bare_file_needs_no_card(folder: Path) -> None:
    found = card.read(folder / "cats.pth")
    assert found == card.Card(folder, "cats", folder / "cats.pth")
    assert (found.version, found.labels, found.spec, found.golden, dict(found.kwargs)) == (
        "1",
        None,
        None,
        (),
        {},
    )


def test_a_folder_with_one_weights_file_needs_no_card(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    assert card.read(folder) == card.Card(folder, "cats", folder / "cats.pth")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("a.pth", "a.pt", "a.ckpt", "a.pth.tar", "a.safetensors", "pytorch_model.bin", "a.bin", "a.pt2"),
        *("a.onnx", "model.safetensors.index.json", "pytorch_model.bin.index.json"),
    ],
)
def test_weights_are_found_by_their_ending(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert card.read(tmp_path).weights == tmp_path / name


def test_the_current_folder_has_a_name_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert card.read(Path()).name == "cats"


def test_a_folder_with_several_weights_files_must_be_told_which(folder: Path) -> None:
    (folder / "dogs.pth").write_bytes(b"x")
    with pytest.raises(
        CardError, match=r"several weights files \(cats.pth, dogs.pth\); model.yaml must name"
    ):
        card.read(folder)
    assert card.read(write(folder, "weights: dogs.pth")).weights == folder / "dogs.pth"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            ["model.safetensors", "pytorch_model.bin", "training_args.bin", "optimizer.pt"],
            "model.safetensors",
        ),
        (
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
            "model.safetensors.index.json",
        ),
        (
            [
                "pytorch_model.bin.index.json",
                "pytorch_model-00001-of-00001.bin",
                "rng_state.pth",
                "scheduler.pt",
            ],
            "pytorch_model.bin.index.json",
        ),
    ],
)
def test_the_folders_of_transformers_hold_one_model(tmp_path: Path, names: list[str], chosen: str) -> None:
    for name in (*names, "config.json"):
        (tmp_path / name).write_bytes(b"x")
    assert card.read(tmp_path).weights == tmp_path / chosen
    (tmp_path / "mine.pth").write_bytes(b"x")
    with pytest.raises(CardError, match="several weights files"):
        card.read(tmp_path)


def test_a_folder_without_weights_says_what_they_end_in(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights file \(\.pth, \.pt"):
        card.read(tmp_path)


def test_a_path_that_leads_nowhere_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pth: no such file or folder"):
        card.read(tmp_path / "gone.pth")


def test_a_mounted_configmap_does_not_confuse_the_search(tmp_path: Path) -> None:
    first, second = tmp_path / "..2026_01", tmp_path / "..2026_02"
    for version in (first, second):
        version.mkdir()
        (version / "cats.pth").write_text(version.name)
        (version / card.FILE).write_text(f"version: '{version.name[-2:]}'")
    (tmp_path / "..data").symlink_to(first.name)
    (tmp_path / "cats.pth").symlink_to("..data/cats.pth")
    (tmp_path / card.FILE).symlink_to("..data/model.yaml")
    (tmp_path / ".hidden.pth").write_bytes(b"x")
    found = card.read(tmp_path)
    assert (found.version, found.weights) == ("01", tmp_path / "cats.pth")
    (tmp_path / "..data").unlink()
    (tmp_path / "..data").symlink_to(second.name)
    assert card.read(tmp_path).version == "02"
    assert found.weights.read_text() == "..2026_02"


# --- with one


def test_a_card_says_it_all(folder: Path) -> None:
    digest = "AB" * 32
    write(
        folder,
        f"""
        name: felines
        version: 7
        weights: cats.pth
        sha256: {digest}
        container: ema.module
        architecture: zoo.nets:Cat
        kwargs: {{depth: 3, drop: 0.5, wide: false}}
        labels: [tom, 1]
        preprocessing:
          resize: [300, 200]
          crop: 96
          interpolation: bicubic
          antialias: false
          exif: true
          mean: 0.5
          std: [0.25]
        golden:
          - {{image: tom.jpg, class_index: 1, probability: 0.75}}
          - {{image: tom.jpg, label: tom}}
        """,
    )
    spec = Spec((300, 200), (96, 96), "bicubic", antialias=False, exif=True, mean=(0.5,), std=(0.25,))
    image = folder / "tom.jpg"
    assert card.read(folder) == card.Card(
        folder=folder,
        name="felines",
        weights=folder / "cats.pth",
        version="7",
        sha256=digest.lower(),
        container="ema.module",
        architecture="zoo.nets:Cat",
        kwargs={"depth": 3, "drop": 0.5, "wide": False},
        labels=("tom", "1"),
        task=StatedTask(implied="classification"),
        spec=spec,
        stated=frozenset({"resize", "crop", "interpolation", "antialias", "exif", "mean", "std"}),
        golden=(Golden(image, 1, 0.75), Golden(image, 0)),
    )


def test_an_empty_card_says_nothing(folder: Path) -> None:
    assert card.read(write(folder, "# nothing yet\n")) == card.Card(folder, "cats", folder / "cats.pth")


def test_a_card_beside_a_file_counts_unless_it_names_another(folder: Path) -> None:
    (folder / "dogs.pth").write_bytes(b"x")
    write(folder, "name: felines")
    assert card.read(folder / "dogs.pth").name == "felines"
    write(folder, "{name: felines, weights: cats.pth}")
    assert card.read(folder / "cats.pth").name == "felines"
    assert card.read(folder / "dogs.pth").name == "dogs"


def test_sizes_that_are_left_out_are_assumed(folder: Path) -> None:
    assert card.read(write(folder, "preprocessing: {exif: true}")).spec == Spec(exif=True, assumed=True)
    said = card.read(write(folder, "preprocessing: {resize: null, crop: [28, 32]}")).spec
    assert said == Spec(resize=None, crop=(28, 32))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "cat\ndog\nox\n\n"),
        ("labels.txt", "\ufeffcat\r\n dog\r\nox"),
        ("labels.json", '["cat", "dog", "ox"]'),
        ("labels.json", '{"1": "dog", "0": "cat", "2": "ox"}'),
        ("labels.json", '{"dog": 1, "cat": 0, "ox": 2}'),
    ],
)
def test_labels_come_from_a_file(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, "utf-8", newline="")
    assert card.read(write(folder, f"labels: {name}")).labels == ("cat", "dog", "ox")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[cat, dog]", "{0: cat, 1: dog}", "{cat: 0, dog: 1}"])
def test_labels_come_in_the_card(folder: Path, text: str) -> None:
    assert card.read(write(folder, f"labels: {text}")).labels == ("cat", "dog")


@pytest.mark.parametrize("demo", ["imagenet", "digits", "shapes", "textures"])
def test_the_cards_of_the_demo_models_are_right(demo: str, tmp_path: Path) -> None:
    folder = tmp_path / demo
    shutil.copytree(ROOT / "weights" / demo, folder, ignore=shutil.ignore_patterns("*.pth"))
    fields = yaml.safe_load((folder / card.FILE).read_text())
    (folder / fields["weights"]).touch()
    found = card.read(folder)
    assert found.labels
    assert found.golden
    assert bool(found.spec) is ("preprocessing" in fields)


# --- what is wrong, where, and what to do


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nme: x", "nme: is not a field; did you mean `name`?"),
        (
            "zzz: x",
            "zzz: is not a field; there are name, version, weights, sha256, container, architecture, kwargs",
        ),
        (
            "preprocessing: {interpolatoin: box}",
            "preprocessing.interpolatoin: is not a field; did you mean `inter",
        ),
        (
            "golden: [{image: tom.jpg, clas_index: 1}]",
            "golden[0].clas_index: is not a field; did you mean `class_index`?",
        ),
        (
            "preprocessing: {interpolation: linear}",
            "interpolation: should be 'nearest', 'bilinear', 'bicubic',",
        ),
        (
            "preprocessing: {resize: big, crop: 3}",
            "preprocessing.resize: must be a number of pixels from 1 to 4096, or",
        ),
        (
            "preprocessing: {resize: 9, crop: [1, 2, 3]}",
            "preprocessing.crop: must be a number of pixels from 1 to 4096, or",
        ),
        (
            "preprocessing: {resize: 9, crop: 0}",
            "preprocessing.crop: must be a number of pixels from 1 to 4096",
        ),
        ("preprocessing: {crop: 28}", "preprocessing: set both `resize` and `crop`"),
        ("preprocessing: {mean: [0.5, 0.5], std: [1, 1]}", "must both have three numbers or both have one"),
        ("preprocessing: {mean: 0.5}", "preprocessing: `mean` and `std` must both have three numbers"),
        (
            "preprocessing: {mean: [123.7, 116.3, 103.5]}",
            "preprocessing.mean[0]: should be less than or equal to 1",
        ),
        ("preprocessing: {std: [0, 1, 1]}", "preprocessing.std[0]: should be greater than 0"),
        ("preprocessing: {antialias: no, interpolation: box}", "is defined for bilinear and bicubic only"),
        ("preprocessing: {channel_order: gbr}", "preprocessing.channel_order: should be 'rgb' or 'bgr'"),
        ("preprocessing: {channel_order: bgr, mean: 0.5, std: 0.5}", "`channel_order: bgr` needs colour"),
        ("preprocessing: 224", "preprocessing: must be a mapping of fields"),
        ("kwargs: 3", "kwargs: must be a mapping"),
        ("golden: 3", "golden: must be a list"),
        ("golden: [{class_index: 1}]", "golden[0].image: must be given"),
        ("golden: [{image: tom.jpg}]", "golden[0]: needs either `class_index` or `label`"),
        (
            "golden: [{image: tom.jpg, class_index: 1, label: x}]",
            "golden[0]: needs either `class_index` or `label`",
        ),
        (
            "golden: [{image: tom.jpg, class_index: -1}]",
            "golden[0].class_index: should be greater than or equal to 0",
        ),
        ("golden: [{image: no.jpg, class_index: 1}]", "no.jpg: No such file or directory"),
        (
            "golden: [{image: tom.jpg, label: cat}]",
            "golden[0].label: the label 'cat' is missing; give class_index",
        ),
        (
            "{labels: [a, a], golden: [{image: tom.jpg, label: a}]}",
            "golden[0].label: the label 'a' is not unique",
        ),
        ("{labels: [a, b], golden: [{image: tom.jpg, class_index: 2}]}", "class_index: must be less than 2"),
        ("labels: [yes, no]", "labels: must be text, but YAML reads it as True; put it in quotes"),
        ("labels: {0: a, 2: b}", "labels: must use the class indices 0 to 1"),
        ("labels: {a: 0, b: 0}", "labels: must use the class indices 0 to 1"),
        ("labels: []", "labels: must be a list of labels, or a mapping of"),
        ("labels: gone.txt", "gone.txt: cannot be read: No such file or directory"),
        ("labels: tom.jpg", None),
        ("version: 1.10", "version: must be text, but YAML reads it as 1.1; put it in quotes"),
        ("name: a/b", "name: must not contain a slash, since it is part of URLs"),
        ("name: ''", "name: must not be empty"),
        ("sha256: abc", "sha256: must be 64 hexadecimal digits"),
        ("- name", "model.yaml: must contain fields, such as `name: digits`"),
        ("name: [a", "model.yaml: line 1: expected ',' or ']'"),
        ("name: \0", "model.yaml: cannot be parsed: "),
        ("1: x", "1"),
    ],
)
def test_a_wrong_card_is_refused_with_the_file_the_field_and_what_is_allowed(
    folder: Path, text: str, complaint: str | None
) -> None:
    write(folder, text)
    if complaint is None:  # one label, strange but true
        assert card.read(folder).labels == ("image",)
        return
    with pytest.raises(CardError) as caught:
        card.read(folder)
    assert str(caught.value).startswith(str(folder))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_the_card_names_must_be_there(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.yaml: weights: the file .*dogs\.pth does not exist"):
        card.read(write(folder, "weights: dogs.pth"))


def test_a_file_of_labels_is_of_the_kind_that_the_card_says(folder: Path) -> None:
    (folder / "c.json").write_text('{"0": 0, "2": 1, "1": 2}')
    with pytest.raises(
        CardError, match=r"c\.json: could map indices to labels or labels to indices.*kind: class"
    ):
        card.read(write(folder, "labels: c.json"))
    found = card.read(write(folder, "labels: {file: c.json, kind: class_to_idx}"))
    assert found.labels == ("0", "2", "1")


def test_a_broken_label_file_is_named(folder: Path) -> None:
    (folder / "labels.json").write_text('{"cat": 5}')
    with pytest.raises(CardError, match=r"labels\.json: must use the class indices 0 to 0"):
        card.read(write(folder, "labels: labels.json"))
    (folder / "labels.json").write_text("{")
    with pytest.raises(CardError, match=r"labels\.json: cannot be parsed"):
        card.read(folder)


# --- what a card that came with a download may do


def test_what_a_card_names_stays_in_its_folder(folder: Path) -> None:
    secret = folder.parent / "secret.txt"
    secret.write_text("secret")
    (folder / "link.txt").symlink_to(secret)
    for name in ("../secret.txt", str(secret), "link.txt", "/etc/passwd", "/dev/zero"):
        with pytest.raises(CardError, match=r"cannot be read: lies outside of the folder"):
            card.read(write(folder, f"labels: {name}"))
        with pytest.raises(CardError, match=r"golden\[0\]\.image: .* lies outside of the folder"):
            card.read(write(folder, f"golden: [{{image: {name}, class_index: 0}}]"))
    for name in ("../secret.txt", str(secret), "a/../../secret.txt"):
        with pytest.raises(CardError, match="weights: must be a file in the folder of the card"):
            card.read(write(folder, f"weights: {name}"))


def test_weights_may_be_a_link_into_a_store(folder: Path) -> None:
    (folder.parent / "blob").write_bytes(b"x")
    (folder / "linked.pth").symlink_to(folder.parent / "blob")
    assert card.read(write(folder, "weights: linked.pth")).weights == folder / "linked.pth"


@pytest.mark.parametrize("name", ["labels.txt", "golden.png", "weights.pth", card.FILE])
def test_a_pipe_in_the_folder_holds_nobody_up(folder: Path, name: str) -> None:
    os.mkfifo(folder / name)
    if name != card.FILE:
        write(
            folder,
            {
                "labels.txt": "labels: labels.txt",
                "golden.png": "golden: [{image: golden.png, class_index: 0}]",
                "weights.pth": "weights: weights.pth",
            }[name],
        )
    with pytest.raises((CardError, WeightsError), match=r"not a regular file|does not exist"):
        card.read(folder)


def test_a_card_and_its_labels_are_bounded_in_size(folder: Path) -> None:
    write(folder, "labels: labels.txt")
    for name in ("labels.txt", card.FILE):
        with (folder / name).open("ab") as file:
            file.truncate(card.BYTES + 1)
        with pytest.raises(CardError, match=rf"{name}: cannot be read: is larger than the 4,194,304 bytes"):
            card.read(folder)


def test_a_few_hundred_bytes_of_aliases_are_refused(folder: Path) -> None:
    bomb = "kwargs:\n  a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    for one, other in pairwise("abcdefghij"):
        bomb += f"  {other}: &{other} [{','.join([f'*{one}'] * 10)}]\n"
    with pytest.raises(CardError, match=r"model\.yaml: line 3: the alias \*a is not allowed here"):
        card.read(write(folder, f"{bomb}name: [*j]\n"))


def test_an_emoji_written_as_json_does_is_an_emoji(folder: Path) -> None:
    text = json.dumps({"name": "cat \U0001f431", "labels": ["\U0001f431"]})
    found = card.read(write(folder, text))
    assert (found.name, found.labels) == ("cat \U0001f431", ("\U0001f431",))


@pytest.mark.parametrize("file", ["labels.json", card.FILE])
def test_half_of_a_surrogate_pair_is_refused(folder: Path, file: str) -> None:
    write(folder, "labels: labels.json")
    (folder / file).write_text('["\\ud83d", "b"]' if file == "labels.json" else 'labels: ["\\ud83d", "b"]')
    with pytest.raises(CardError, match=r"\\ud83d is not valid text: it contains an unpaired surrogate"):
        card.read(folder)


def test_a_folder_whose_name_is_not_utf_8_has_a_name_that_is_text(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "m.pth").write_bytes(b"x")
    assert card.read(folder).name == "caf\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("field", ["name", "version"])
@pytest.mark.parametrize("text", ['"a\\nb"', '"\\e[31mred"', '"\\u202e"', "a" * 201])
def test_a_name_is_printable_and_short(folder: Path, field: str, text: str) -> None:
    with pytest.raises(CardError, match=f"{field}: must have at most 200 characters, all of them printable"):
        card.read(write(folder, f"{field}: {text}"))


@pytest.mark.parametrize(
    "text",
    [
        f"{'k' * 5000}: x",
        f"golden: [{{image: {'i' * 5000}, class_index: 0}}]",
        f"golden: [{{image: tom.jpg, label: {'l' * 5000}}}]",
        f"labels: {'f' * 5000}.txt",
        f"weights: {'w' * 5000}",
        f"preprocessing: {{interpolation: {'i' * 5000}}}",
        "labels: [[" + "x," * 5000 + "]]",
        '"\\e[2J": x',
        'labels: "\\e[2J"',
        'labels: "a\\0b"',
        "version: 0x" + "f" * 9000,
    ],
)
def test_an_error_cuts_what_it_quotes_and_keeps_it_off_the_terminal(folder: Path, text: str) -> None:
    with pytest.raises((CardError, WeightsError)) as caught:
        card.read(write(folder, text))
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


# --- written


ANSWERS = (Golden(Path("tom.jpg"), 3, 0.91), Golden(Path("tom.jpg"), 0))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "{}"),
        ("name: felines  # of the house\n", "name: felines  # of the house\n{}"),
        ("name: felines", "name: felines\n{}"),
        ("# one\ngolden: []\n# two\nversion: '2'\n", "# one\n{}# two\nversion: '2'\n"),
        (
            "name: felines\ngolden:\n  # a\n  - image: tom.jpg\n    class_index: 5\n\n# b\nversion: '2'\n",
            "name: felines\n{}\n# b\nversion: '2'\n",
        ),
        ("golden:\n- {image: tom.jpg, class_index: 5}  # why\nname: felines\n", "{}name: felines\n"),
        ("golden: [\n]\nname: felines\n", "{}name: felines\n"),
    ],
)
def test_golden_answers_are_written_and_the_rest_stays(folder: Path, before: str, after: str) -> None:
    if before:
        write(folder, before)
    golden = [Golden(folder / one.image, one.class_index, one.probability) for one in ANSWERS]
    file = card.write_golden(folder, golden)
    block = (
        "golden:\n- {image: tom.jpg, class_index: 3, probability: 0.91}\n- {image: tom.jpg, class_index: 0}\n"
    )
    assert file.read_text() == after.replace("{}", block)
    assert card.read(folder).golden == tuple(golden)
    assert {entry.name for entry in folder.iterdir()} == {"cats.pth", "tom.jpg", card.FILE}


def test_golden_answers_are_not_written_into_a_card_that_is_wrong(folder: Path) -> None:
    write(folder, "nme: x")
    with pytest.raises(CardError):
        card.write_golden(folder, ANSWERS)
    assert (folder / card.FILE).read_text() == "nme: x"


@pytest.mark.parametrize(
    "made",
    [
        "",
        "preprocessing: {exif: true}",
        "preprocessing: {channel_order: bgr, resize: 256, crop: 224}",
        "{name: Käse, version: '010', labels: ['no', '1', 'a: b'], kwargs: {a: [1, {b: null}]}}",
        "{preprocessing: {resize: null, crop: [28, 32], mean: 0.5, std: 0.5}, architecture: resnet18}",
        "{labels: [tom], golden: [{image: tom.jpg, label: tom, probability: 0.123456789}]}",
        "{task: multilabel, threshold: 0, labels: [a, b], golden: [{image: tom.jpg, labels: [b]}]}",
        "{task: regression, outputs: [{name: age, unit: years, range: [0, 120]}, {name: size}]}",
        "{task: detection, outputs: {layout: yolov8, overlap: 0.5}}",
        "{outputs: {boxes: b, scores: s, labels: l, format: xywh, units: shares, first_label: 1}}",
        "{task: regression, golden: [{image: tom.jpg, values: [1.5, null]}]}",
        "{task: embedding, normalize: true, golden: [{image: tom.jpg, vector: [0.6, 0.8]}]}",
        "task: binary",
    ],
)
def test_a_dumped_card_reads_back_the_same(folder: Path, made: str) -> None:
    before = card.read(write(folder, made))
    write(folder, card.dump(before))
    assert card.read(folder) == before


# --- the task


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("", StatedTask()),
        ("task: binary", StatedTask("binary")),
        ("threshold: 0.3", StatedTask(implied="multilabel", threshold=0.3)),
        ("outputs: [{name: age}]", StatedTask(implied="regression", outputs=(NamedOutput("age"),))),
        (
            "{outputs: {layout: yolov5}, threshold: 0.3}",
            StatedTask(implied="detection", threshold=0.3, graph=GraphOutputs(layout="yolov5")),
        ),
        (
            "{task: segmentation, outputs: {tensor: out}}",
            StatedTask("segmentation", "segmentation", graph=GraphOutputs(tensor="out")),
        ),
        ("normalize: true", StatedTask(implied="embedding", normalize=True)),
        ("golden: [{image: tom.jpg, class_index: 1}]", StatedTask(implied="classification")),
        ("golden: [{image: tom.jpg, labels: []}]", StatedTask(implied="multilabel")),
        ("golden: [{image: tom.jpg, values: 3}]", StatedTask(implied="regression")),
        ("golden: [{image: tom.jpg, vector: [1]}]", StatedTask(implied="embedding")),
    ],
)
def test_a_card_states_the_task_or_tells_it_by_what_only_one_task_has(
    folder: Path, text: str, stated: StatedTask
) -> None:
    assert card.read(write(folder, text)).task == stated


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ("labels: [ant, bee, cat]\ngolden: [{image: tom.jpg, labels: [cat, 0]}]", {"labels": (2, 0)}),
        (
            "labels: [ant, bee]\ngolden: [{image: tom.jpg, probabilities: {bee: 0.25}}]",
            {"probabilities": (None, 0.25)},
        ),
        (
            "outputs: [{name: age}, {name: size}]\ngolden: [{image: tom.jpg, values: {size: -2}}]",
            {"values": (None, -2.0)},
        ),
        ("golden: [{image: tom.jpg, values: [1, null]}]", {"values": (1.0, None)}),
        ("golden: [{image: tom.jpg, values: 31}]", {"values": (31.0,)}),
        ("golden: [{image: tom.jpg, vector: [0, 1.5]}]", {"vector": (0.0, 1.5)}),
    ],
)
def test_a_golden_image_states_the_answer_of_its_task(
    folder: Path, fields: str, answer: dict[str, Any]
) -> None:
    assert card.read(write(folder, fields)).golden == (Golden(folder / "tom.jpg", **answer),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: detect", "task: "),
        (
            "{task: regression, threshold: 0.3}",
            "`threshold` is for `task: multilabel` or `task: binary` or `task: detection`, but the task is",
        ),
        ("{threshold: 0.3, normalize: true}", "`threshold` and `normalize` are of different tasks"),
        (
            "{task: regression, golden: [{image: tom.jpg, class_index: 1}]}",
            "golden\\[0\\] states an answer of `task: classification`, but the task is regression",
        ),
        (
            "golden: [{image: tom.jpg, class_index: 1, values: [1]}]",
            "`class_index` and `values` are answers of",
        ),
        ("outputs: [{name: a}, {name: a}]", "`outputs` has the name 'a' twice"),
        ("outputs: [{name: a, range: [2, 1]}]", "`range` must be the minimum and the maximum"),
        ("outputs: [{name: a, nit: m}]", r"outputs\[0\].nit: .*did you mean `unit`"),
        ("outputs: []", "outputs"),
        ("outputs: {boxs: a}", r"outputs.boxs: is not a field; did you mean `boxes`"),
        ("outputs: {boxes: a}", "state both `boxes` and `scores`"),
        ("outputs: {layout: yolov8, boxes: a, scores: b}", "state either `layout`, or `boxes` and `scores`"),
        ("outputs: {layout: yolov5, format: xyxy}", "`format` is always `cxcywh`"),
        ("outputs: {layout: yolov9}", "outputs.layout: .*'yolov5', 'yolov8' or 'rows'"),
        ("{task: regression, outputs: {layout: yolov8}}", "`outputs` is for `task: detection`"),
        (
            "preprocessing: {resize: 64, crop: 64, pad: 114}",
            "`pad` needs `resize: .height, width.` and the same",
        ),
        (
            "{labels: [a], golden: [{image: tom.jpg, labels: [b]}]}",
            "the label 'b' is missing; give its index",
        ),
        ("golden: [{image: tom.jpg, values: {age: 1}}]", "the label 'age' is missing; name them in the card"),
        ("golden: [{image: tom.jpg, values: [.nan]}]", "golden"),
        ("golden: [{image: tom.jpg, vector: []}]", "golden"),
        ("golden: [{image: tom.jpg, labels: [1.5]}]", "golden"),
        ("threshold: 1.5", "threshold"),
    ],
)
def test_what_does_not_fit_a_task_is_refused(folder: Path, text: str, words: str) -> None:
    with pytest.raises(CardError, match=words):
        card.read(write(folder, text))


@pytest.mark.parametrize(
    "answer",
    [
        {"labels": (0, 2), "probabilities": (0.9, None, 0.7)},
        {"values": (1.5, None)},
        {"vector": (0.6, 0.8)},
    ],
)
def test_golden_answers_of_any_task_are_written(folder: Path, answer: dict[str, Any]) -> None:
    golden = Golden(folder / "tom.jpg", **answer)
    card.write_golden(folder, [golden])
    assert card.read(folder).golden == (golden,)


# --- the table


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(name, meaning, default) of each field, as the table has them."""
    for name, field in model.model_fields.items():
        default = (
            "" if field.is_required() or field.default in (None, {}, ()) else f"`{json.dumps(field.default)}`"
        )
        yield f"`{prefix}{name}`", field.description or "", default.replace('"', "")


def test_the_table_in_the_documentation_is_the_code() -> None:
    text = (ROOT / "docs" / "card.md").read_text()
    text = text.partition("## ")[0]
    rows = re.findall(r"^\| (`[\w.\[\]]+`) \| (.*?) \| (.*?) ?\|$", text, re.MULTILINE)
    parts = (
        *fields(Fields),
        *fields(OutputFields, "outputs[]."),
        *fields(GraphOutputFields, "outputs."),
        *fields(FirstLayer, "first_layer."),
        *fields(Head, "head."),
        *fields(Preprocessing, "preprocessing."),
        *fields(GoldenImage, "golden[]."),
        *fields(GoldenObject, "golden[].boxes[]."),
    )
    assert rows == list(parts)


def test_the_examples_in_the_documentation_are_cards(folder: Path) -> None:
    text = (ROOT / "docs" / "card.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 6
    (folder / "labels.txt").write_text("cat\ndog\n")
    (folder / "classes.json").write_text('{"0": 0, "2": 1}')
    for example in examples:
        for name in yaml.safe_load(example).get("golden", ()):
            (folder / name["image"]).write_bytes(b"image")
        card.read(write(folder, example))


@pytest.mark.parametrize("name", ["saved_model.pb", "export.pkl", "model.keras", "model.h5"])
def test_a_folder_of_another_tool_is_read_so_far_that_it_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    (tmp_path / "fingerprint.pb").write_bytes(b"x")
    (tmp_path / name).write_bytes(b"xyz")
    assert card.read(tmp_path).weights == tmp_path / name
