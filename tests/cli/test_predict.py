"""predict: here and at a service, the same."""

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from .called import called

pytestmark = pytest.mark.slow


def predict(*arguments: str | Path) -> CompletedProcess[str]:
    return called("predict", *arguments)


def test_a_model_here_and_a_service_give_the_same_answers(served_digits: str, digits: Path) -> None:
    images = [digits / "golden" / f"{digit}.png" for digit in (7, 2)]
    here, there = (predict(source, *images, "--json") for source in (digits, served_digits))
    assert here.returncode == there.returncode == 0, here.stderr + there.stderr
    ours, theirs = json.loads(here.stdout), json.loads(there.stdout)
    for one, other, image, digit in zip(ours, theirs, images, (7, 2), strict=True):
        assert one["image"] == other["image"] == str(image)
        assert one["class_index"] == other["class_index"] == digit
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert [best["label"] for best in one["top"]] == [best["label"] for best in other["top"]]


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
