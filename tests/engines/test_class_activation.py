"""The class activation map of an OpenVINO graph is Grad-CAM's map of the module it was made of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pthserve.engines.base import Explains, Explanation
from pthserve.engines.class_activation import class_activation, consistent
from pthserve.engines.grad_cam import GradCam
from pthserve.engines.openvino_engine import OpenVINOEngine
from pthserve.engines.openvino_graph import convert, read, save
from pthserve.engines.quantized_graph import quantize
from pthserve.engines.torch_engine import TorchEngine
from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec

pytestmark = pytest.mark.slow

SPEC = Spec(crop=(64, 96), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
GREY = Spec(crop=(32, 32), mean=(0.5,), std=(0.25,))
CLASS = 3

Build = Callable[[str, Spec], nn.Module]
Pixels = Callable[[Spec, int], NDArray[np.uint8]]


def pooled(spec: Spec, pool: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(1)
    body = [
        nn.Conv2d(spec.channels, 6, 3, 2),
        nn.ReLU(),
        nn.Conv2d(6, 12, 3, 2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
    ]
    head = [pool or nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(12, 7)]
    return nn.Sequential(*body, *head).eval()


def scaled(explanation: Explanation | None) -> NDArray[np.float32]:
    assert explanation is not None
    return explanation.map / np.abs(explanation.map).max()


@pytest.mark.parametrize("spec", [SPEC, GREY], ids=["rgb", "grey"])
def test_both_engines_give_the_same_map_up_to_a_factor(spec: Spec, pixels: Pixels) -> None:
    module = pooled(spec)
    image = pixels(spec, 1)[0]
    by_gradient = TorchEngine(module, spec).explain(image, CLASS)
    by_graph = OpenVINOEngine(convert(module, spec), spec).explain(image, CLASS)
    assert by_gradient is not None
    assert by_graph is not None
    assert (by_gradient.method, by_graph.method) == ("Grad-CAM", "class activation map")
    assert by_gradient.map.dtype == by_graph.map.dtype == np.float32
    np.testing.assert_allclose(scaled(by_gradient), scaled(by_graph), atol=1e-5)


def test_the_mean_of_the_map_is_the_logit_without_its_bias(pixels: Pixels) -> None:
    module = pooled(SPEC)
    engine = OpenVINOEngine(convert(module, SPEC), SPEC)
    images = pixels(SPEC, 2)
    logits = engine(images)
    maps = [engine.explain(image, CLASS) for image in images]
    means = [explanation.map.mean() for explanation in maps if explanation]
    assert means == pytest.approx(logits[:, CLASS] - module[-1].bias[CLASS].item(), abs=1e-5)


def test_a_graph_from_a_disk_is_explained_too(tmp_path: Path, pixels: Pixels) -> None:
    graph = convert(pooled(SPEC), SPEC)
    image = pixels(SPEC, 1)[0]
    expected = scaled(OpenVINOEngine(graph, SPEC).explain(image, CLASS))
    save(graph, tmp_path / "model.xml")
    np.testing.assert_array_equal(
        scaled(OpenVINOEngine(read(tmp_path / "model.xml"), SPEC).explain(image, CLASS)), expected
    )


def test_an_int8_graph_is_explained_too(pixels: Pixels) -> None:
    graph = convert(pooled(SPEC), SPEC)
    image = pixels(SPEC, 1)[0]
    expected = scaled(OpenVINOEngine(graph, SPEC).explain(image, CLASS))
    rounded = quantize(graph, normalise(pixels(SPEC, 8), SPEC), 7).quantized
    correlation = np.corrcoef(
        scaled(OpenVINOEngine(rounded, SPEC).explain(image, CLASS)).ravel(), expected.ravel()
    )
    assert correlation[0, 1] > 0.95


def test_the_engine_answers_as_before_while_and_after_it_explains(pixels: Pixels) -> None:
    module, images = pooled(SPEC), pixels(SPEC, 2)
    for engine in (TorchEngine(module, SPEC), OpenVINOEngine(convert(module, SPEC), SPEC)):
        before = engine(images).copy()
        assert isinstance(engine, Explains)
        engine.explain(images[0], CLASS)
        np.testing.assert_array_equal(engine(images), before)
    assert not any(part._forward_hooks for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


class Tokens(nn.Module):
    """Patches as tokens, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 8, 16, 16), nn.LayerNorm(8), nn.Linear(8, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.norm(self.patches(images).flatten(2).mT)
        answer: torch.Tensor = self.head(tokens[:, 0])
        return answer


HEADS: dict[str, Callable[[], nn.Module]] = {
    "two linear layers": lambda: nn.Sequential(*pooled(SPEC), nn.ReLU(), nn.Linear(7, 5)),
    "pooling to more than one place": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    ),
    "tokens": Tokens,
    "no feature map": lambda: nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SPEC.tensor_shape)), 5)),
}


@pytest.mark.parametrize("head", HEADS)
def test_any_other_head_has_no_class_activation_map(head: str, pixels: Pixels) -> None:
    graph = convert(HEADS[head]().eval(), SPEC)
    assert class_activation(graph) is None
    assert OpenVINOEngine(graph, SPEC).explain(pixels(SPEC, 1)[0], CLASS) is None


def test_a_head_without_a_linear_layer_is_its_own_map(pixels: Pixels) -> None:
    module = nn.Sequential(nn.Conv2d(3, 7, 3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    image = pixels(SPEC, 1)[0]
    found = OpenVINOEngine(convert(module, SPEC), SPEC).explain(image, CLASS)
    with torch.no_grad():
        expected = module[:2](torch.from_numpy(normalise(image[None], SPEC)))[0, CLASS].numpy()
    assert found is not None
    np.testing.assert_allclose(found.map, expected, atol=1e-5)


def test_a_head_that_shuffles_its_channels_is_seen_through() -> None:
    random = np.random.default_rng(0)
    places = random.normal(size=(2, 4, 5, 9)).astype(np.float32)
    logits = places.mean((1, 2)) + 3
    assert consistent(places, logits)
    assert not consistent(places, logits[:, ::-1])


@pytest.mark.parametrize("module", [Tokens, HEADS["no feature map"]], ids=["tokens", "no feature map"])
def test_grad_cam_has_no_map_without_a_last_feature_map(module: Callable[[], nn.Module]) -> None:
    assert GradCam(module().eval())(torch.zeros(1, *SPEC.tensor_shape), 0) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "graph_has_one"),
    [
        ("resnet18", True),
        ("densenet121", True),
        ("mobilenet_v3_small", False),
        ("shufflenet_v2_x0_5", True),
        ("squeezenet1_1", True),
        ("convnext_tiny", False),
        ("swin_t", None),
        ("vgg11", False),
        ("vit_b_32", False),
    ],
)
def test_of_torchvision_s_families(
    build: Build, pixels: Pixels, name: str, graph_has_one: bool | None
) -> None:
    side = 224 if name == "vit_b_32" else 96
    spec = Spec(resize=side, crop=(side, side))
    module, image = build(name, spec), pixels(spec, 1)[0]
    by_gradient = TorchEngine(module, spec).explain(image, CLASS)
    by_graph = OpenVINOEngine(convert(module, spec), spec).explain(image, CLASS)
    assert (by_gradient is None) == (name == "vit_b_32")
    if graph_has_one is not None:
        assert (by_graph is not None) == graph_has_one
    if by_graph is not None:
        np.testing.assert_allclose(scaled(by_gradient), scaled(by_graph), atol=1e-3)
