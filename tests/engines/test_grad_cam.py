"""Grad-CAM's map is each channel of the last feature map there is, times the mean of its gradient."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pthserve.engines.grad_cam import GradCam

CLASSES = 5
IMAGES = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, 2), nn.ReLU(inplace=True)
    )


def head(channels: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class Nested(nn.Module):
    """With its parts under names of its own, and functions between them that no hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.ModuleDict({"left": body()})
        self.voice = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu_(self.eyes["left"](images) - 0.1)
        said: Tensor = self.voice(features.mean((2, 3)))
        return said


class Tokens(nn.Module):
    """Patches as tokens, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.voice = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.patches(images).flatten(2).mT)
        said: Tensor = self.voice(tokens[:, 0])
        return said


class Aside(nn.Module):
    """Whose last feature map has no part in the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.voice, self.aside = nn.Linear(3, CLASSES), nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        said: Tensor = self.voice(images.mean((2, 3)))
        self.aside(images)
        return said


class Deaf(nn.Module):
    """That lets no gradient through."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Sequential(body(), head())

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        said: Tensor = self.all(images)
        return said


@pytest.mark.slow
@pytest.mark.parametrize("class_index", range(CLASSES))
def test_it_is_equations_1_and_2_of_the_paper(class_index: int) -> None:
    first, last = body(), head()
    features = first(IMAGES)
    features.retain_grad()
    last(features)[0, class_index].backward()
    weights = features.grad.mean((2, 3))[0]
    expected = torch.einsum("c,chw->hw", weights, features.detach()[0])
    found = GradCam(nn.Sequential(first, last).eval())(IMAGES.clone(), class_index)
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_last_feature_map_is_found_whatever_it_is_called() -> None:
    module = Nested().eval()
    found = GradCam(module)(IMAGES.clone(), 2)
    features = module.eyes["left"](IMAGES)
    assert found is not None
    assert found.shape == features.shape[2:]
    assert found.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [Tokens, lambda: nn.Sequential(nn.Flatten(), nn.Linear(IMAGES.numel(), CLASSES)), Aside, Deaf],
    ids=["tokens", "no feature map", "another's feature map", "no gradient"],
)
def test_where_no_feature_map_says_there_is_no_map(module: type[nn.Module]) -> None:
    assert GradCam(module().eval())(IMAGES.clone(), 0) is None


def test_it_is_of_the_image_at_hand_however_often_it_is_asked() -> None:
    grad_cam = GradCam(nn.Sequential(body(), head()).eval())
    first, other = (grad_cam(images.clone(), 1) for images in (IMAGES, 1 - IMAGES))
    again = grad_cam(IMAGES.clone(), 1)
    assert first is not None
    assert other is not None
    assert again is not None
    np.testing.assert_array_equal(first, again)
    assert not torch.allclose(first, other)


def test_the_module_is_left_as_it_is_and_its_parameters_are_not_copied() -> None:
    module = nn.Sequential(body(), head()).eval()
    grad_cam = GradCam(module)
    grad_cam(IMAGES.clone(), 0)
    assert not any(part._forward_hooks for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert [one.data_ptr() for one in grad_cam._module.parameters()] == [
        one.data_ptr() for one in module.parameters()
    ]


def test_it_holds_no_image_between_two_calls() -> None:
    grad_cam = GradCam(nn.Sequential(body(), head()).eval())
    grad_cam(IMAGES.clone(), 0)
    assert grad_cam._last is None


def test_it_works_where_inference_mode_is_on_elsewhere() -> None:
    module = nn.Sequential(body(), head()).eval()
    with torch.inference_mode():
        module(IMAGES)
    assert GradCam(module)(IMAGES.clone(), 0) is not None
