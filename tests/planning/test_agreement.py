"""When two models agree on images, when they do not, and how that is said."""

from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.images.pictures import LIMIT, encoded, photo
from torch import nn

from pthserve.engines.torch_engine import TorchEngine
from pthserve.images.preprocess import crop
from pthserve.images.spec import Spec
from pthserve.loading.model import Golden, Model
from pthserve.planning.agreement import (
    CLEAR_MARGIN,
    compare,
    golden,
    prove,
    sample_images,
    samples,
    softmax,
)
from pthserve.planning.plan import Plan

SEED = 5
SPEC = Spec(resize=40, crop=(32, 32))
LABELS = ("ant", "bee", "cat", "dog")
TOLERANCE = 0.02


def engine(scale: float = 1.0, classes: int = len(LABELS), noise: float = 0.0) -> TorchEngine:
    """A network of one layer; its logits are `scale` times those of the one that is its reference."""
    torch.manual_seed(SEED)
    layer = nn.Linear(3 * 32 * 32, classes)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(scale).add_(torch.randn_like(parameter) * noise)
    return TorchEngine(nn.Sequential(nn.Flatten(), layer), SPEC)


def model(forward: TorchEngine, *known: Golden) -> Model:
    return Model(forward, LABELS, SPEC, Plan(), "0" * 64, "pets", "1", "linear", 0, known)


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "tom.jpg"
    path.write_bytes(encoded(photo("chelsea"), "JPEG"))
    return path


@pytest.fixture
def answer(picture: Path) -> np.ndarray:
    """What the reference says of the picture: float32 (classes,)."""
    return softmax(engine()(crop(picture.read_bytes(), SPEC, max_pixels=LIMIT)[None]))[0]


# --- probabilities


def test_softmax_is_torch_s() -> None:
    logits = np.random.default_rng(SEED).normal(0, 5, (7, 11)).astype(np.float32)
    expected = torch.from_numpy(logits).softmax(-1).numpy()
    assert np.allclose(softmax(logits), expected, atol=1e-7)
    assert np.allclose(softmax(logits[0]), expected[0], atol=1e-7)
    assert softmax(logits).dtype == np.float32


def test_softmax_of_large_logits_is_finite() -> None:
    assert softmax(rows([3e38, -3e38, 0])).tolist() == [[1, 0, 0]]


def test_softmax_of_what_is_no_number_is_none_and_warns_of_nothing() -> None:
    assert np.isnan(softmax(rows([np.inf, 0], [np.nan, 0]))).all()


# --- two sets of answers


def test_answers_within_the_tolerance_agree() -> None:
    proof = compare(rows([0.7, 0.3], [0.1, 0.9]), rows([0.71, 0.29], [0.1, 0.9]), TOLERANCE)
    assert proof.agrees
    assert proof.difference == pytest.approx(0.01, abs=1e-6)


def test_a_probability_beyond_the_tolerance_disagrees() -> None:
    proof = compare(rows([0.7, 0.3], [0.1, 0.9]), rows([0.7, 0.3], [0.2, 0.8]), TOLERANCE)
    assert proof.disagreements == ("image 1: a probability is 0.100 off, more than 0.02",)
    assert proof.difference == pytest.approx(0.1, abs=1e-6)


def test_another_top_class_disagrees_where_the_margin_is_clear() -> None:
    reference = rows([0.5 + CLEAR_MARGIN, 0.5 - CLEAR_MARGIN])
    assert compare(reference[:, ::-1], reference, 1).disagreements == ("image 0: class 1, and not 0",)


def test_another_top_class_agrees_where_the_margin_is_not_clear() -> None:
    reference = rows([0.5 + CLEAR_MARGIN / 3, 0.5 - CLEAR_MARGIN / 3])
    assert compare(reference[:, ::-1], reference, 1).agrees


def test_what_is_no_number_never_agrees() -> None:
    proof = compare(rows([np.nan, np.nan]), rows([0.5, 0.5]), 1)
    assert proof.disagreements == ("image 0: its probabilities are not numbers",)
    assert proof.difference == np.inf


def test_another_number_of_classes_disagrees() -> None:
    assert compare(rows([0.5, 0.5]), rows([1]), 1).disagreements == ("2 classes, and not 1",)


def test_one_class_agrees_with_itself() -> None:
    assert compare(rows([1]), rows([1]), 0).agrees


# --- an engine


def test_an_engine_agrees_with_itself_and_not_with_another() -> None:
    images = sample_images(SPEC)
    reference = softmax(engine()(images))
    same = prove(engine(), images, reference, TOLERANCE)
    assert same.agrees
    assert same.difference < 1e-5
    other = prove(engine(noise=0.5), images, reference, TOLERANCE)
    assert not other.agrees
    assert other.difference > TOLERANCE
    assert len(other.disagreements) <= len(images)


# --- golden images


def test_a_model_gives_its_golden_images_their_answers(picture: Path, answer: np.ndarray) -> None:
    top = int(answer.argmax())
    known = (Golden(picture, top, float(answer[top]) + 0.01), Golden(picture, top))
    proof = golden(model(engine(), *known), TOLERANCE)
    assert proof.agrees
    assert proof.difference == pytest.approx(0.01, abs=1e-5)


def test_a_model_without_golden_images_has_nothing_to_prove() -> None:
    assert golden(model(engine()), TOLERANCE).agrees


def test_a_golden_image_of_another_class_is_said_with_both_labels(picture: Path, answer: np.ndarray) -> None:
    top, other = answer.argsort()[::-1][:2]
    proof = golden(model(engine(), Golden(picture, int(other))), TOLERANCE)
    words = f"tom.jpg: class {top} ({LABELS[top]}), and not {other} ({LABELS[other]})"
    assert proof.disagreements == (words,)


def test_a_golden_image_of_another_probability_is_said_with_both(picture: Path, answer: np.ndarray) -> None:
    top = int(answer.argmax())
    proof = golden(model(engine(), Golden(picture, top, 0.999), Golden(picture, top)), 0.001)
    assert proof.disagreements == (f"tom.jpg: probability {answer[top]:.3f}, and not 0.999 ± 0.001",)
    assert proof.difference == pytest.approx(0.999 - answer[top], abs=1e-5)


def test_a_golden_image_that_is_gone_or_broken_disagrees(picture: Path) -> None:
    broken = picture.with_name("broken.jpg")
    broken.write_bytes(picture.read_bytes()[:1000])
    known = (Golden(picture.with_name("gone.jpg"), 0), Golden(broken, 0))
    gone, cut = golden(model(engine(), *known), TOLERANCE).disagreements
    assert gone.startswith("gone.jpg: cannot be read: ")
    assert cut.startswith("broken.jpg: cannot be read: the JPEG image is broken")


def test_a_golden_class_that_the_model_has_not_disagrees(picture: Path) -> None:
    proof = golden(model(engine(), Golden(picture, 4)), TOLERANCE)
    assert proof.disagreements == ("tom.jpg: there is no class 4 among 4",)


def test_a_model_of_no_numbers_disagrees(picture: Path) -> None:
    proof = golden(model(engine(scale=np.nan), Golden(picture, 0)), TOLERANCE)
    assert proof.disagreements == ("tom.jpg: its probabilities are not numbers",)
    assert proof.difference == np.inf


def test_golden_images_are_decoded_as_the_service_decodes(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(encoded(photo().resize((2400, 1600)), "JPEG"))
    sharp = replace(model(engine(scale=40)), golden=(Golden(path, 0, 0.5),))
    exact, fast = (golden(sharp, 0, decode).difference for decode in ("exact", "fast"))
    assert exact != fast


# --- the sample images


def test_the_sample_images_are_small_photos_that_ship_with_their_licence() -> None:
    readme = (resources.files("pthserve.images") / "samples" / "README.md").read_text()
    assert 4 <= len(samples()) == readme.count(".jpg`")
    assert all(len(data) <= 60_000 for data in samples())


@pytest.mark.parametrize("spec", [Spec(), Spec(mean=(0.5,), std=(0.5,)), Spec(resize=None, crop=(700, 30))])
def test_the_sample_images_come_as_a_model_sees_them(spec: Spec) -> None:
    images = sample_images(spec)
    assert images.shape == (len(samples()), *spec.image_shape)
    assert images.dtype == np.uint8
    assert len({Image.fromarray(image.squeeze()).tobytes() for image in images}) == len(images)
