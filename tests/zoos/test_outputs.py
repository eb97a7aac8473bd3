"""What a module of the user's own gives for an image is found out by asking it."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pthserve.errors import ArchitectureError
from pthserve.zoos.outputs import probe


class ClassifierFirst(nn.Module):
    """The classifier is registered before the layers that run before it."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(32, 3)
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.stem(images))


class Returning(nn.Module):
    """A module that returns what `shape` makes of its logits."""

    def __init__(self, shape: Callable[[Tensor], Any], channels: int = 3) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(channels, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.shape = shape

    def forward(self, images: Tensor) -> Any:
        return self.shape(self.inner(images))


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


SIZE = (16, 24)


def test_the_order_of_registration_does_not_matter() -> None:
    assert probe(ClassifierFirst(), "own", [3], SIZE).outputs == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_the_image_has_the_channels_that_the_module_takes(channels: int) -> None:
    module = Returning(lambda logits: logits, channels)
    assert probe(module, "own", [3, 1], SIZE).channels == channels


@pytest.mark.parametrize(
    "shape",
    [
        lambda logits: {"logits": logits, "hidden": logits},
        lambda logits: OrderedDict(hidden=logits, logits=logits),
        lambda logits: Output(logits, logits),
    ],
)
def test_logits_are_taken_out_of_what_has_them(shape: Callable[[Tensor], Any]) -> None:
    module = Returning(shape)
    probed = probe(module, "own", [3], SIZE)
    images = torch.rand(2, 3, *SIZE)
    assert probed.outputs == 5
    assert torch.equal(probed.module(images), module.inner(images))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (lambda x: {"out": x, "aux": x}, "gives a dict with out, aux, as models for segmentation do"),
        (
            lambda x: [{"boxes": x, "scores": x}] * 2,
            "gives a list of 2 with boxes, scores, as models for detection do",
        ),
        (lambda x: (x, x), "gives a tuple of 2, but pthserve needs"),
        (lambda x: x[:, :, None, None], r"gives a tensor of the shape \(2, 5, 1, 1\) for 2 images"),
        (lambda x: x[0], r"gives a tensor of the shape \(5,\)"),
        (lambda x: x[:, :0], r"gives a tensor of the shape \(2, 0\)"),
        (lambda x: {"logits": (x, x)}, "gives a tuple of 2"),
        (lambda _: None, "gives a NoneType"),
    ],
)
def test_what_is_no_row_of_numbers_is_refused_by_what_it_is(
    shape: Callable[[Tensor], Any], words: str
) -> None:
    with pytest.raises(ArchitectureError, match=rf"own {words}.*\(batch, classes\)"):
        probe(Returning(shape), "own", [3], SIZE)


def test_a_module_that_fails_names_the_line_for_another_size() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(10, 3))
    with pytest.raises(
        ArchitectureError, match=r"own fails on an image of 24x16 pixels: RuntimeError.*crop: 224"
    ):
        probe(module, "own", [3, 1], SIZE)
