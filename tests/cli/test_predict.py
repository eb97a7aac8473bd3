"""predict: here and at a service, the same."""

import json
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import pytest

from .called import called

pytestmark = pytest.mark.slow


def predict(*arguments: str | Path) -> CompletedProcess[str]:
    return called("predict", *arguments)


def test_a_model_here_and_a_service_give_the_same_answers(served_digits: str, digits: Path) -> None:
    images = [digits / "golden" / f"{digit}.png" for digit in (7, 2)]
    precision = httpx.get(f"{served_digits}/info").json()["precision"]
    here = predict(digits, *images, "--json", "--precision", precision)
    there = predict(served_digits, *images, "--json")
    assert here.returncode == there.returncode == 0, here.stderr + there.stderr
    ours, theirs = json.loads(here.stdout), json.loads(there.stdout)
    for one, other, image, digit in zip(ours, theirs, images, (7, 2), strict=True):
        assert one["image"] == other["image"] == str(image)
        assert one["class_index"] == other["class_index"] == digit
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert [best["label"] for best in one["top"]] == [best["label"] for best in other["top"]]


def test_what_the_answers_of_a_model_here_rest_on_is_noted_beside_them(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.pth").symlink_to(digits / "digits.pth")
    done = predict(tmp_path / "bare.pth", digits / "golden" / "7.png", "--json")
    assert json.loads(done.stdout)
    assert "Note: preprocessing: " in done.stderr
    assert "`preprocessing: {resize: 256, crop: 224}`" in done.stderr
    assert "Note" not in predict(digits, digits / "golden" / "7.png").stderr


def test_the_table_shows_as_many_classes_as_asked_for(served_digits: str, digits: Path) -> None:
    done = predict(served_digits, digits / "golden" / "7.png", "--top", "3")
    assert done.stdout.count("%") == 3


def test_the_service_s_own_words_are_passed_on(served_digits: str, tmp_path: Path) -> None:
    image = tmp_path / "text.png"
    image.write_text("no image")
    done = predict(served_digits, image)
    assert done.returncode == 1
    assert "responds with 415" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_broken_image_is_named(digits: Path, tmp_path: Path) -> None:
    image = tmp_path / "text.png"
    image.write_text("no image")
    done = predict(digits, image)
    assert done.returncode == 1
    assert done.stderr.startswith(f"pthserve: {image}: ")


def test_a_service_that_is_not_there_is_said_in_one_line(digits: Path) -> None:
    done = predict("http://127.0.0.1:1", digits / "golden" / "7.png")
    assert done.returncode == 1
    assert "does not respond" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("remote", [False, True])
def test_a_broken_image_keeps_no_other_from_being_shown(
    served_digits: str, digits: Path, tmp_path: Path, remote: bool
) -> None:
    broken, gone = tmp_path / "text.png", tmp_path / "more.png"
    broken.write_text("no image")
    gone.write_text("none either")
    images = (broken, digits / "golden" / "7.png", gone, digits / "golden" / "2.png")
    source = served_digits if remote else digits
    done = predict(source, *images, "--top", "1")
    assert done.returncode == 1
    assert done.stdout.count("%") == 2
    assert [str(image) in line for image, line in zip((broken, gone), done.stderr.splitlines(), strict=True)]
    answers = json.loads(predict(source, *images, "--json").stdout)
    assert [answer.get("class_index") for answer in answers] == [None, 7, None, 2]
    assert "not a supported image" in answers[0]["error"]
