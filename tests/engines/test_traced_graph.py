"""A module whose computation depends on the image becomes a graph that computes the same, for images of any
size."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from pthserve.engines.openvino_engine import OpenVINOEngine
from pthserve.engines.openvino_graph import check, convert
from pthserve.errors import EngineError
from pthserve.images.spec import Spec
from pthserve.tasks.base import ANY

SPEC = Spec.uncropped(40, antialias=False, rounded=False)
SHAPES = ((3, 40, 53), (3, 53, 40), (3, 33, 90))


class Scores(nn.Module):
    """Sizes and values that depend on the image's size, for any number of images."""

    varies = True

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images)
        sizes = torch._shape_as_tensor(images)[2:].to(values)
        return torch.cat((sizes.expand(values.shape[0], -1), values.flatten(1)), 1)


class Boxes(nn.Module):
    """Of boxes around the brightest places of one image, those that do not overlap: 8 of them, or zeros."""

    varies = True
    one_image = True

    def forward(self, images: Tensor) -> Tensor:
        rows = []
        for image in images:
            bright = image.mean(0)
            place = bright.flatten().topk(50).indices
            corner = torch.stack((place % bright.shape[1], place // bright.shape[1]), 1).float()
            boxes = torch.cat((corner, corner + 9), 1)
            kept = boxes[nms(boxes, bright.flatten()[place], 0.1)]
            rows.append(nn.functional.pad(kept, (0, 0, 0, 8))[:8].flatten())
        return torch.stack(rows)


class Fixed(nn.Module):
    """What a trace takes for a constant: the number of rows that it saw."""

    varies = True

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * int(images.shape[2])


class Untraceable(nn.Module):
    varies = True

    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("not of this image")


def images(count: int, shape: tuple[int, ...], seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((count, *shape), np.float32)


def by_torch(module: nn.Module, batch: Any) -> Any:
    with torch.inference_mode():
        return module(torch.from_numpy(batch)).numpy()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("made", [Scores, Boxes])
def test_images_of_any_size_and_batches_of_any_number_have_pytorch_s_answers(
    made: type[nn.Module], threads: int
) -> None:
    torch.manual_seed(0)
    module = made()
    engine = OpenVINOEngine(convert(module, SPEC), SPEC, threads=threads)
    for seed, shape in enumerate(SHAPES):
        for count in (1, 3):
            batch = images(count, shape, seed)
            np.testing.assert_allclose(engine(batch), by_torch(module, batch), atol=1e-4)


def test_a_size_that_a_trace_took_for_a_constant_shows_on_the_images_that_engines_are_compared_on() -> None:
    module = Fixed()
    engine = OpenVINOEngine(convert(module, SPEC), SPEC)
    batch = images(1, SPEC.tensor_shape, 0)
    assert abs(engine(batch) - by_torch(module, batch)).max() > 0.01


def test_images_that_are_cropped_have_a_graph_of_one_size(tmp_path: Any) -> None:
    spec = Spec(resize=(40, 40), crop=(40, 40))
    graph = convert(Boxes(), spec)
    assert str(graph.input(0).partial_shape) == "[1,3,40,40]"
    check(graph, spec, 32, name=tmp_path)
    with pytest.raises(EngineError, match=re.escape("needs [1,3,?,?]")):
        check(graph, SPEC, 32, name=tmp_path)
    with pytest.raises(EngineError, match=re.escape("and [1,33]")):
        check(graph, spec, 33, name=tmp_path)


def test_how_many_outputs_there_are_may_depend_on_the_image(tmp_path: Any) -> None:
    graph = convert(Scores(), SPEC)
    check(graph, SPEC, ANY, name=tmp_path)
    with pytest.raises(EngineError, match=re.escape("and [?,32]")):
        check(graph, SPEC, 32, name=tmp_path)


def test_what_cannot_be_traced_is_refused_with_the_reason() -> None:
    with pytest.raises(
        EngineError, match="cannot convert Untraceable: not of this image; use --engine torch"
    ):
        convert(Untraceable(), SPEC)
