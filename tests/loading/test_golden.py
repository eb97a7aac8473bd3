"""Golden images: when a model agrees with its known answers, and what is said where it does not."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.images.pictures import LIMIT, encoded, photo

from pthserve.files.golden import Golden
from pthserve.images.preprocess import crop
from pthserve.loading.golden import check_golden
from pthserve.tasks.classification import softmax

from ..planning.one_layer import LABELS, SPEC, TOLERANCE, engine, model


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "tom.jpg"
    path.write_bytes(encoded(photo("chelsea"), "JPEG"))
    return path


@pytest.fixture
def answer(picture: Path) -> np.ndarray:
    """What the reference says of the picture: float32 (classes,)."""
    return softmax(engine()(crop(picture.read_bytes(), SPEC, max_pixels=LIMIT)[None]))[0]


def test_a_model_gives_its_golden_images_their_answers(picture: Path, answer: np.ndarray) -> None:
    top = int(answer.argmax())
    known = (Golden(picture, top, float(answer[top]) + 0.01), Golden(picture, top))
    proof = check_golden(model(engine(), *known), TOLERANCE)
    assert proof.agrees
    assert proof.difference == pytest.approx(0.01, abs=1e-5)


def test_a_model_without_golden_images_has_nothing_to_prove() -> None:
    assert check_golden(model(engine()), TOLERANCE).agrees


def test_a_golden_image_of_another_class_is_said_with_both_labels(picture: Path, answer: np.ndarray) -> None:
    top, other = answer.argsort()[::-1][:2]
    proof = check_golden(model(engine(), Golden(picture, int(other))), TOLERANCE)
    words = f"tom.jpg: class {top} ({LABELS[top]}), and not {other} ({LABELS[other]})"
    assert proof.disagreements == (words,)


def test_a_golden_image_of_another_probability_is_said_with_both(picture: Path, answer: np.ndarray) -> None:
    top = int(answer.argmax())
    proof = check_golden(model(engine(), Golden(picture, top, 0.999), Golden(picture, top)), 0.001)
    assert proof.disagreements == (f"tom.jpg: probability {answer[top]:.3f}, and not 0.999 ± 0.001",)
    assert proof.difference == pytest.approx(0.999 - answer[top], abs=1e-5)


def test_a_golden_image_that_is_gone_or_broken_disagrees(picture: Path) -> None:
    broken = picture.with_name("broken.jpg")
    broken.write_bytes(picture.read_bytes()[:1000])
    known = (Golden(picture.with_name("gone.jpg"), 0), Golden(broken, 0))
    gone, cut = check_golden(model(engine(), *known), TOLERANCE).disagreements
    assert gone.startswith("gone.jpg: cannot be read: ")
    assert cut.startswith("broken.jpg: cannot be read: the JPEG image is broken")


def test_a_golden_image_that_became_a_pipe_disagrees_and_is_not_waited_for(picture: Path) -> None:
    picture.unlink()
    os.mkfifo(picture)
    (words,) = check_golden(model(engine(), Golden(picture, 0)), TOLERANCE).disagreements
    assert "is not a regular file" in words


def test_a_golden_class_that_the_model_has_not_disagrees(picture: Path) -> None:
    proof = check_golden(model(engine(), Golden(picture, 4)), TOLERANCE)
    assert proof.disagreements == ("tom.jpg: there is no class 4 among 4",)


def test_a_model_of_no_numbers_disagrees(picture: Path) -> None:
    proof = check_golden(model(engine(scale=np.nan), Golden(picture, 0)), TOLERANCE)
    assert proof.disagreements == ("tom.jpg: its probabilities are not numbers",)
    assert proof.difference == np.inf


def test_golden_images_are_decoded_as_the_service_decodes(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(encoded(photo().resize((2400, 1600)), "JPEG"))
    sharp = replace(model(engine(scale=40)), golden=(Golden(path, 0, 0.5),))
    exact, fast = (check_golden(sharp, 0, decode).difference for decode in ("exact", "fast"))
    assert exact != fast
