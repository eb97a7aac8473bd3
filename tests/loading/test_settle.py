"""Golden images decide what a weights file leaves open."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from torch import nn

from pthserve.certainty import Inferred, Origin
from pthserve.images.preprocess import crop, normalise
from pthserve.images.spec import Spec
from pthserve.loading import settle
from pthserve.loading.golden import apply_golden_policy
from pthserve.loading.load import Built, build, load
from pthserve.options import ModelOptions
from pthserve.planning import crops

SPEC = Spec(80, (64, 64))
OPTIONS = ModelOptions(engine="torch", precision="fp32")


def network(*, fc: nn.Module | None = None, conv: nn.Conv2d | None = None) -> nn.Module:
    """A small ShuffleNet whose answers differ from image to image."""
    torch.manual_seed(3)
    module = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    module.conv1[0] = conv or module.conv1[0]
    module.fc = fc or module.fc
    spec = Spec(80, (64, 64), mean=(0.5,), std=(0.5,)) if conv else SPEC
    images = [crop(data, spec, max_pixels=2**30) for data in crops.samples()[:8]]
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.from_numpy(normalise(np.stack(images), spec)))
        last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
        last.weight *= 6
    return module.eval()


def folder(path: Path, module: nn.Module, spec: Spec, count: int = 3, **fields: Any) -> Path:
    """A folder with the weights of `module`, and golden images with the answers that it gives by `spec`."""
    golden = []
    for number, data in enumerate(crops.samples()[:count]):
        (path / f"{number}.jpg").write_bytes(data)
        with torch.no_grad():
            image = torch.from_numpy(normalise(crop(data, spec, max_pixels=2**30)[None], spec))
            probability, index = module(image).softmax(1).max(1)
        golden.append(
            {
                "image": f"{number}.jpg",
                "class_index": int(index),
                "probability": round(float(probability), 6),
                **({"recorded": True} if fields.get("recorded") else {}),
            }
        )
    fields.pop("recorded", None)
    torch.save(module.state_dict(), path / "m.pth")
    (path / "model.yaml").write_text(yaml.safe_dump({"golden": golden, **fields}))
    return path


def about(built: Built, subject: str) -> Inferred:
    (found,) = (one for one in built.inferred if one.subject == subject)
    return found


STATED: dict[str, Any] = {"preprocessing": {"resize": 80, "crop": 64}}


def two_layers(activation: nn.Module) -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(1024, 32), activation, nn.Linear(32, 4))


def wrapped() -> nn.Module:
    """What is left of `Sequential(Linear, Sigmoid)` in a file."""
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(1024, 4), nn.Identity())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "setting"),
    [
        (nn.ReLU(), "head: {activation: relu}"),
        (nn.Tanh(), "head: {activation: tanh}"),
        (nn.LeakyReLU(0.2), "head: {activation: leaky_relu, slope: 0.2}"),
        (nn.Dropout(), "head: {activation: none}"),
    ],
    ids=str,
)
def test_they_settle_the_activation_of_a_head(tmp_path: Path, activation: nn.Module, setting: str) -> None:
    module = network(fc=two_layers(activation))
    built = build(str(folder(tmp_path, module, SPEC, **STATED)), OPTIONS)
    settled = about(built, "activation")
    assert (settled.origin, settled.setting) == (Origin.GOLDEN, setting)
    image = torch.rand(1, 3, 64, 64)
    assert built.architecture.module is not None
    with torch.no_grad():
        torch.testing.assert_close(built.architecture.module(image), module(image))


@pytest.mark.slow
def test_they_settle_the_stride_of_a_first_layer(tmp_path: Path) -> None:
    grey = Spec(80, (64, 64), mean=(0.5,), std=(0.5,))
    module = network(conv=nn.Conv2d(1, 24, 3, bias=False))
    card: dict[str, Any] = {"preprocessing": {"resize": 80, "crop": 64, "mean": 0.5, "std": 0.5}}
    built = build(str(folder(tmp_path, module, grey, **card)), OPTIONS)
    settled = about(built, "first layer")
    assert (settled.origin, settled.setting) == (Origin.GOLDEN, "first_layer: {stride: 1, padding: 0}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", [Spec(256, (224, 224)), Spec((224, 224), (224, 224))], ids=["the preset", "squashed"]
)
def test_they_settle_the_preprocessing(tmp_path: Path, spec: Spec) -> None:
    built = build(str(folder(tmp_path, network(), spec)), OPTIONS)
    assert built.spec == spec
    assert about(built, "preprocessing").origin is Origin.GOLDEN


def of_sigmoid(path: Path, module: nn.Module) -> list[dict[str, Any]]:
    """The golden images of `path` with the probabilities of a sigmoid behind `module`."""
    card = yaml.safe_load((path / "model.yaml").read_text())
    for number, one in enumerate(card["golden"]):
        image = crop((path / one["image"]).read_bytes(), SPEC, max_pixels=2**30)
        with torch.no_grad():
            probabilities = module(torch.from_numpy(normalise(image[None], SPEC)))[0].sigmoid()
        one["probability"] = round(float(probabilities.max()), 6)
        assert int(probabilities.argmax()) == one["class_index"], number
    (path / "model.yaml").write_text(yaml.safe_dump(card))
    return list(card["golden"])


@pytest.mark.slow
def test_they_settle_whether_a_softmax_or_a_sigmoid_follows_the_head(tmp_path: Path) -> None:
    """`Sequential(Linear, Sigmoid)` and `Sequential(Linear, Softmax)` leave the same tensors."""
    module = network(fc=wrapped())
    built = build(str(folder(tmp_path, module, SPEC, **STATED)), OPTIONS)
    assert (built.task.name, about(built, "task").origin) == ("classification", Origin.GOLDEN)
    golden = of_sigmoid(tmp_path, module)
    built = build(str(tmp_path), OPTIONS)
    task = about(built, "task")
    assert (built.task.name, task.origin, task.setting) == ("multilabel", Origin.GOLDEN, "task: multilabel")
    for given, one in zip(built.card.golden, golden, strict=True):
        assert given.probabilities is not None
        assert given.probabilities[one["class_index"]] == one["probability"]
    with load(str(tmp_path), OPTIONS) as model:
        assert apply_golden_policy(model, OPTIONS) == "agreed"


@pytest.mark.slow
def test_the_line_that_states_the_settled_task_keeps_the_golden_images(tmp_path: Path) -> None:
    module = network(fc=wrapped())
    folder(tmp_path, module, SPEC, task="multilabel", **STATED)
    of_sigmoid(tmp_path, module)
    with load(str(tmp_path), OPTIONS) as model:
        assert about(build(str(tmp_path), OPTIONS), "task").origin is Origin.CARD
        assert apply_golden_policy(model, OPTIONS) == "agreed"


def test_a_task_that_is_stated_is_not_settled_otherwise(tmp_path: Path) -> None:
    module = network(fc=wrapped())
    folder(tmp_path, module, SPEC, task="classification", **STATED)
    of_sigmoid(tmp_path, module)
    built = build(str(tmp_path), OPTIONS)
    assert (built.task.name, about(built, "task").origin) == ("classification", Origin.CARD)


def test_answers_that_nothing_gives_settle_nothing(tmp_path: Path) -> None:
    module = network(fc=two_layers(nn.Softsign()))
    built = build(str(folder(tmp_path, module, SPEC, **STATED)), OPTIONS)
    assert about(built, "activation").origin is Origin.ASSUMED
    assert isinstance(built.architecture.module.fc[2], nn.ReLU)


def test_one_image_is_too_few_to_prefer_what_was_not_assumed(tmp_path: Path) -> None:
    module = network(fc=two_layers(nn.Tanh()))
    built = build(str(folder(tmp_path, module, SPEC, 1, **STATED)), OPTIONS)
    assert about(built, "activation").origin is Origin.ASSUMED


@pytest.mark.slow
def test_answers_that_agree_less_than_they_are_precise_settle_nothing(tmp_path: Path) -> None:
    """Within the tolerance nothing but a softmax agrees, and yet something else may be right."""
    path = folder(tmp_path, network(fc=two_layers(nn.ReLU())), SPEC, **STATED)
    built = build(str(path), OPTIONS)
    assert {about(built, subject).origin for subject in ("task", "activation")} == {Origin.GOLDEN}
    card = yaml.safe_load((path / "model.yaml").read_text())
    for one in card["golden"]:
        one["probability"] = round(one["probability"] + (0.0051 if one["probability"] < 0.9 else -0.0051), 6)
    (path / "model.yaml").write_text(yaml.safe_dump(card))
    built = build(str(path), OPTIONS)
    assert Origin.GOLDEN not in {about(built, subject).origin for subject in ("task", "activation")}
    assert isinstance(built.architecture.module.fc[2], nn.ReLU)
    with load(str(path), OPTIONS) as model:
        assert apply_golden_policy(model, OPTIONS) == "agreed"


def test_what_the_model_itself_answered_is_no_evidence(tmp_path: Path) -> None:
    module = network(fc=two_layers(nn.ReLU()))
    built = build(str(folder(tmp_path, module, SPEC, recorded=True, **STATED)), OPTIONS)
    assert about(built, "activation").origin is Origin.ASSUMED


def test_classes_without_probabilities_are_no_evidence(tmp_path: Path) -> None:
    path = folder(tmp_path, network(fc=two_layers(nn.ReLU())), SPEC, **STATED)
    card = yaml.safe_load((path / "model.yaml").read_text())
    for one in card["golden"]:
        del one["probability"]
    (path / "model.yaml").write_text(yaml.safe_dump(card))
    assert about(build(str(path), OPTIONS), "activation").origin is Origin.ASSUMED


@pytest.mark.parametrize("change", [("BUDGET", 0.0)], ids=str)
def test_what_would_take_too_long_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, float]
) -> None:
    monkeypatch.setattr(settle, *change)
    module = network(fc=two_layers(nn.Tanh()))
    built = build(str(folder(tmp_path, module, SPEC, **STATED)), OPTIONS)
    assert about(built, "activation").origin is Origin.ASSUMED
    assert isinstance(built.architecture.module.fc[2], nn.ReLU)


def test_golden_images_that_are_not_checked_settle_nothing(tmp_path: Path) -> None:
    module = network(fc=two_layers(nn.Tanh()))
    off = OPTIONS.model_copy(update={"golden": "off"})
    built = build(str(folder(tmp_path, module, SPEC, **STATED)), off)
    assert about(built, "activation").origin is Origin.ASSUMED


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
