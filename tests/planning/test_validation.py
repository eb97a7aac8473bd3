"""The user's own images, and what is known of their classes."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pthserve.errors import EngineError
from pthserve.files.golden import Golden
from pthserve.options import ModelOptions
from pthserve.planning import validation
from pthserve.planning.crops import COUNT, samples

from ..linear import noise, png
from .one_layer import LABELS, SPEC

Images = Callable[..., Path]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Makes a folder of images that are all different, by their names."""

    def make(*names: str) -> Path:
        for number, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(png(noise(number)))
        return tmp_path

    return make


def classes(source: Path, labels: tuple[str, ...] = LABELS) -> tuple[int, ...] | None:
    return validation.read(source, SPEC, labels).origin.labels


def test_a_folder_for_each_class_names_them(images: Images) -> None:
    folder = images("dog/1.png", "ant/1.png", "Cat/deep/2.png")
    (folder / "ant" / "notes.txt").write_text("not an image")
    assert classes(folder) == (2, 0, 3)  # in the order of the names: Cat, ant, dog


def test_folders_are_numbered_as_torchvision_does_where_nobody_named_the_classes(images: Images) -> None:
    folder = images("zebra/1.png", "ant/1.png", "bee/1.png")
    assert classes(folder, ("0", "1", "2")) == (0, 1, 2)
    assert classes(folder, ("0", "1", "2", "3")) is None


def test_a_folder_of_images_alone_has_no_classes(images: Images, caplog: pytest.LogCaptureFixture) -> None:
    assert classes(images("1.png", "2.png")) is None
    assert not caplog.records


def test_folders_of_other_names_are_reported_and_not_taken_for_classes(
    images: Images, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pthserve"):
        assert classes(images("monday/1.png", "dog/1.png")) is None
    assert "not named after the model's classes" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "1.png,ant\nmore/2.png,dog\n",
        "\ufeffimage,label\r\n1.png,ant\r\nmore/2.png, Dog \r\n",
        "label,split,file\n0,test,1.png\n3,test,more/2.png\n",
    ],
    ids=["no header", "header of a spreadsheet", "other columns, and numbers"],
)
def test_a_csv_file_names_images_and_their_classes(images: Images, text: str) -> None:
    folder = images("1.png", "more/2.png")
    (folder / "test.csv").write_text(text, "utf-8")
    assert classes(folder / "test.csv") == (0, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.png,cow\n", "cow, the class of 1.png, is not a class of the model"),
        ("1.png,4\n", "4, the class of 1.png, is not a class of the model"),
        ("1.png\n", "the row 1.png needs an image and a class"),
        ("2.png,ant\n", r"2\.png: cannot be read"),
        ("", "names no image"),
        ("image,label\n", "names no image"),
    ],
)
def test_a_row_without_an_image_or_a_class_is_an_error(images: Images, text: str, message: str) -> None:
    folder = images("1.png")
    (folder / "test.csv").write_text(text)
    with pytest.raises(EngineError, match=message):
        classes(folder / "test.csv")


def test_what_is_neither_a_folder_nor_a_csv_file_is_an_error(images: Images) -> None:
    folder = images("1.png", "dog/notes.txt")
    with pytest.raises(EngineError, match=r"1\.png: is not a CSV file"):
        classes(folder / "1.png")
    with pytest.raises(EngineError, match="missing: cannot be read"):
        classes(folder / "missing")
    (folder / "none").mkdir()
    with pytest.raises(EngineError, match="contains no image"):
        classes(folder / "none")


# --- which images engines are compared on


def source(options: ModelOptions, *golden: Golden) -> tuple[str, int, bool]:
    origin = validation.crops(options, golden, SPEC, LABELS).origin
    return origin.source, origin.photos, origin.own


def asked(**values: Any) -> ModelOptions:
    return ModelOptions(threads=1, **values)


def test_without_images_of_the_user_s_they_are_the_golden_and_the_sample_images(images: Images) -> None:
    golden = Golden(images("1.png") / "1.png", 0)
    assert source(asked()) == ("sample images", len(samples()), False)
    assert source(asked(), golden) == ("golden and sample images", 1 + len(samples()), False)


def test_enough_images_of_the_user_s_are_used_alone(images: Images) -> None:
    folder = images(*(f"{number:03}.png" for number in range(validation.FEW)))
    assert source(asked(validation=folder)) == ("validation images", validation.FEW, True)


def test_few_images_of_the_user_s_are_used_beside_those_of_the_package(images: Images) -> None:
    found = source(asked(validation=images("1.png", "2.png")))
    assert found == ("validation images, sample images", 2 + len(samples()), False)


def test_of_calibration_images_every_second_one_is_compared_on(images: Images) -> None:
    folder = images(*(f"{number:03}.png" for number in range(2 * validation.FEW)))
    crops = validation.crops(asked(calibration=folder), (), SPEC, LABELS)
    assert (crops.source, crops.own) == ("calibration images", True)
    assert [Path(photo.name).stem for photo in crops.photos] == [f"{n:03}" for n in range(1, 40, 2)]
    assert source(asked(calibration=folder, validation=folder))[0] == "validation images"


def test_many_labelled_images_are_all_compared_and_others_only_as_many_as_needed(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:03}.png" for number in range(COUNT + 5)]
    labelled = images(*(f"of/dog/{name}" for name in names)) / "of"
    assert source(asked(validation=labelled)) == ("validation images", COUNT + 5, True)
    assert source(asked(validation=labelled / "dog")) == ("validation images", COUNT, True)


def test_a_maximum_drop_in_accuracy_needs_the_classes(images: Images) -> None:
    with pytest.raises(EngineError, match="set --validation"):
        source(asked(max_accuracy_drop="1%"))
    with pytest.raises(EngineError, match="needs the class of each image"):
        source(asked(max_accuracy_drop="1%", validation=images("1.png")))
