"""A user's function beside a model: the stage that differs first, by how much, and the lines that mend it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import transforms as t

from pthserve.certainty import Inferred, Origin
from pthserve.comparison.compare import Comparison, compare
from pthserve.comparison.user_function import UserFunction
from pthserve.errors import PthserveError
from pthserve.images.spec import Spec
from pthserve.loading.model import Model

from ..linear import LABELS, Linear, linear
from .photos import IMAGENET, array, opened, photos

SPEC = Spec(resize=40, crop=(32, 32))
ENGINE = Linear(SPEC, len(LABELS))
ENGINE.weights *= 5  # so that the probabilities are far apart


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photos(tmp_path_factory.mktemp("photos"))


class Function(UserFunction):
    """A function of the test's own, in place of a script's."""

    def __init__(self, function: Callable[[str], Any]) -> None:
        self.name, self._function, self._path = "train.py:prepare", function, Path("train.py")


def compared(paths: list[Path], function: Callable[[str], Any], model: Model | None = None) -> Comparison:
    return compare(model or linear(ENGINE), Function(function), paths)


def differing(found: Comparison) -> list[str]:
    return [stage.name for stage in found.stages if stage.differs]


AS_THE_CARD = t.Compose([t.Resize(40), t.CenterCrop(32), t.ToTensor(), IMAGENET])
BGR_SQUASHED = t.Compose([t.Resize((32, 32)), t.ToTensor(), lambda x: x.flip(0), IMAGENET])


def prepare(path: str) -> torch.Tensor:
    return AS_THE_CARD(opened(path))


def logits(tensor: torch.Tensor) -> np.ndarray:
    return array(tensor).ravel() @ ENGINE.weights


def probabilities(tensor: torch.Tensor) -> np.ndarray:
    exponents = np.exp(logits(tensor) - logits(tensor).max())
    return exponents / exponents.sum()


@pytest.mark.parametrize("scores", [logits, probabilities])
def test_the_same_in_all_stages_agrees(paths: list[Path], scores: Callable[[Any], Any]) -> None:
    found = compared(paths, lambda path: (tensor := prepare(path), scores(tensor)))
    assert found.agrees
    assert found.first_difference is None
    assert [stage.name for stage in found.stages] == ["decode", "resize", "crop", "normalise", "forward"]
    assert (found.card, found.images) == (None, 3)
    assert found.levels < 0.01


def test_without_scores_the_forward_pass_is_left_out(paths: list[Path]) -> None:
    found = compared(paths, prepare)
    assert found.agrees
    assert [stage.name for stage in found.stages] == ["decode", "resize", "crop", "normalise"]


@pytest.mark.slow
def test_the_first_of_several_differences_is_named_and_all_are_mended(paths: list[Path]) -> None:
    found = compared(paths, lambda path: BGR_SQUASHED(opened(path)))
    assert (found.agrees, found.first_difference) == (False, "decode")
    assert differing(found) == ["decode", "resize"]
    assert all(stage.difference > 1 for stage in found.stages if stage.differs)
    assert found.card["channel_order"] == "bgr"
    assert found.card["resize"] == [32, 32]
    assert found.card["crop"] == 32
    mended = replace(ENGINE.spec, resize=(32, 32), channel_order="bgr")
    engine = Linear(mended, len(LABELS))
    assert compared(paths, lambda path: BGR_SQUASHED(opened(path)), linear(engine)).agrees
    assert any("best class changes for" in note for note in found.notes)


@pytest.mark.slow
def test_another_size_is_a_difference_of_the_crop(paths: list[Path]) -> None:
    larger = t.Compose([t.Resize(60), t.CenterCrop(48), t.ToTensor(), IMAGENET])
    found = compared(paths, lambda path: larger(opened(path)))
    assert differing(found) == ["resize", "crop"]
    assert (found.levels, found.card["resize"], found.card["crop"]) == (None, 60, 48)
    assert any("forward pass was not compared" in note for note in found.notes)


@pytest.mark.slow
def test_what_no_card_can_state_is_a_note_and_no_line(paths: list[Path]) -> None:
    def padded(path: str) -> Any:
        return t.functional.pad(AS_THE_CARD(opened(path))[:, 4:-4], [0, 4])

    found = compared(paths, padded)
    assert not found.agrees
    assert found.card is None
    assert {stage.differs for stage in found.stages} == {None}
    assert any("pads the image" in note and "cannot state" in note for note in found.notes)


@pytest.mark.slow
def test_tensors_that_no_variation_gives_differ_without_a_stage(paths: list[Path]) -> None:
    found = compared(paths, lambda path: prepare(path).transpose(1, 2))
    assert (found.agrees, found.first_difference, found.card) == (False, None, None)
    assert any("No variation of decoding" in note for note in found.notes)


def test_other_weights_are_a_difference_of_the_forward_pass_alone(paths: list[Path]) -> None:
    model = replace(
        linear(ENGINE),
        inferred=(
            Inferred("activation", "ReLU in the head", Origin.ASSUMED),
            Inferred("labels", "the indices", Origin.ASSUMED),
        ),
    )
    found = compared(paths, lambda path: (tensor := prepare(path), logits(tensor)[::-1] * 2), model)
    assert differing(found) == ["forward"]
    forward = found.stages[-1]
    assert forward.difference > 0.001
    assert forward.ours.partition(":")[0] in LABELS
    assert any("It was not stated: activation: ReLU" in note for note in found.notes)
    assert not any("labels" in note for note in found.notes)


def test_classes_in_another_order_are_told(paths: list[Path]) -> None:
    found = compared(paths, lambda path: probabilities(prepare(path))[::-1].copy())
    assert differing(found) == ["forward"]
    assert any("numbers the classes otherwise" in note for note in found.notes)


def test_a_sigmoid_in_place_of_a_softmax_is_told(paths: list[Path]) -> None:
    found = compared(
        paths, lambda path: (tensor := prepare(path), torch.sigmoid(torch.tensor(logits(tensor))))
    )
    assert differing(found) == ["forward"]
    assert any("`task: multilabel`" in note for note in found.notes)


def test_probabilities_alone_are_enough_to_agree(paths: list[Path]) -> None:
    found = compared(paths, lambda path: probabilities(prepare(path)))
    assert found.agrees
    assert found.stages[-1].difference < 0.001


def test_probabilities_alone_are_enough_to_find_the_preprocessing(paths: list[Path]) -> None:
    found = compared(paths, lambda path: probabilities(BGR_SQUASHED(opened(path))))
    assert (found.agrees, found.first_difference) == (False, "decode")
    assert differing(found) == ["decode", "resize"]
    assert (found.card["channel_order"], found.card["resize"]) == ("bgr", [32, 32])


@pytest.mark.slow
def test_probabilities_of_another_model_lead_to_no_line(paths: list[Path]) -> None:
    found = compared(paths, lambda path: probabilities(prepare(path) * 3 + 1))
    assert (found.agrees, found.card) == (False, None)
    assert any("No variation of the preprocessing gives" in note for note in found.notes)


def test_images_that_cannot_tell_something_are_said(paths: list[Path], tmp_path: Path) -> None:
    notes = compared(paths, prepare).notes
    assert [note for note in notes if "EXIF" in note]
    assert not [note for note in notes if "square" in note or "colours" in note]
    square = tmp_path / "square.png"
    opened(paths[0]).crop((0, 0, 300, 300)).convert("L").save(square)
    notes = compared([square], prepare).notes
    assert [note for note in notes if "square" in note]
    assert [note for note in notes if "No image has colours" in note]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda path: prepare(path)[:1], "1 channels .*, and the model gets 3"),
        (lambda path: np.ones(7) / 7, "7 probabilities or logits, and the model gives 5"),
        (lambda path: prepare(path) if "coffee" in path else np.ones(5) / 5, "for some images and not"),
        (lambda path: t.ToTensor()(opened(path)), "a model gets images of one size"),
    ],
)
def test_what_cannot_be_compared_is_an_error(
    paths: list[Path], function: Callable[[str], Any], words: str
) -> None:
    with pytest.raises(PthserveError, match=words):
        compared(paths, function)
