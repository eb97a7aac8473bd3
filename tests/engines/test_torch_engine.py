"""PyTorch's engine answers as the plain module does, from bytes or from tensors."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pthserve.engines.openvino_engine import OpenVINOEngine
from pthserve.engines.openvino_graph import convert
from pthserve.engines.torch_engine import GRAPH_SIZES, TorchEngine, precisions
from pthserve.errors import EngineError
from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec

SMALL = Spec(crop=(64, 64))
TINY = Spec(crop=(16, 20), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
GREY = Spec(crop=(12, 12), mean=(0.5,), std=(0.25,))

Build = Callable[[str, Spec], nn.Module]
Pixels = Callable[[Spec, int], NDArray[np.uint8]]

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device found")


def probabilities(logits: NDArray[np.float32] | torch.Tensor) -> NDArray[np.float64]:
    return torch.as_tensor(logits).double().softmax(1).numpy()


def assert_agrees(
    engine: TorchEngine, module: nn.Module, images: NDArray[np.uint8], spec: Spec, tolerance: float
) -> None:
    normalised = normalise(images, spec)
    with torch.no_grad():
        expected = probabilities(module(torch.from_numpy(normalised)))
    for batch in (images, normalised):
        answer = engine(batch)
        assert answer.dtype == np.float32
        assert answer.shape == expected.shape
        assert np.abs(probabilities(answer) - expected).max() < tolerance


@pytest.mark.parametrize("spec", [TINY, GREY], ids=["rgb", "grey"])
def test_bytes_are_normalised_as_by_torchvision_and_tensors_are_left_alone(
    spec: Spec, pixels: Pixels
) -> None:
    engine = TorchEngine(nn.Flatten(), spec)
    expected = normalise(pixels(spec, 3), spec)
    assert np.array_equal(engine(pixels(spec, 3)), expected.reshape(3, -1))
    assert np.array_equal(engine(expected), expected.reshape(3, -1))


def test_a_module_may_have_tensors_of_five_dimensions(pixels: Pixels) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.scale = nn.Parameter(torch.rand(1, 4, 1, 1, 1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scaled: torch.Tensor = self.conv(images).mean((2, 3)) * self.scale.flatten()
            return scaled

    plain = Scaled().eval()
    engine = TorchEngine(copy.deepcopy(plain), TINY)
    assert_agrees(engine, plain, pixels(TINY, 2), TINY, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_it_agrees_with_the_plain_module_at_any_batch_size(
    build: Build, pixels: Pixels, count: int, threads: int
) -> None:
    plain = build("resnet18", SMALL)
    engine = TorchEngine(copy.deepcopy(plain), SMALL, threads=threads)
    assert_agrees(engine, plain, pixels(SMALL, count), SMALL, 1e-5)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_on_other_threads_it_is_another_engine_of_the_same_model(build: Build, pixels: Pixels) -> None:
    plain = build("resnet18", SMALL)
    engine = TorchEngine(copy.deepcopy(plain), SMALL, threads=2)
    other = engine.with_threads(1)
    engine(pixels(SMALL, 1))
    assert torch.get_num_threads() == 2
    engine.close()
    assert_agrees(other, plain, pixels(SMALL, 3), SMALL, 1e-5)
    assert torch.get_num_threads() == 1


def test_views_and_read_only_arrays_are_taken(build: Build, pixels: Pixels) -> None:
    engine = TorchEngine(build("tiny", TINY), TINY)
    images = pixels(TINY, 4)
    expected = engine(images[::-1].copy())
    assert np.array_equal(engine(images[::-1]), expected)
    images.flags.writeable = False
    assert np.array_equal(engine(images)[::-1], expected)


@pytest.mark.slow
def test_a_graph_converted_before_keeps_its_weights(build: Build, pixels: Pixels) -> None:
    module = copy.deepcopy(build("tiny", TINY))
    other = OpenVINOEngine(convert(module, TINY), TINY)
    assert_agrees(TorchEngine(module, TINY), build("tiny", TINY), pixels(TINY, 2), TINY, 1e-5)
    expected = TorchEngine(module, TINY)(pixels(TINY, 2))
    assert np.allclose(other(pixels(TINY, 2)), expected, atol=1e-5)


def test_a_module_may_keep_what_it_computed_in_a_buffer(pixels: Pixels) -> None:
    class Keeps(nn.Module):
        places: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("places", torch.zeros(1, 1, 1, 1), persistent=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.places.shape[2:] != images.shape[2:]:
                self.places = torch.ones(1, 1, *images.shape[2:])
            return (images + self.places.expand(len(images), -1, -1, -1)).flatten(1)

    module = Keeps()
    first = TorchEngine(module, TINY)(pixels(TINY, 2))
    assert np.array_equal(TorchEngine(module, TINY)(pixels(TINY, 2)), first)


def test_bf16_agrees_within_the_tolerance_where_the_cpu_computes_it(build: Build, pixels: Pixels) -> None:
    if "bf16" not in precisions("cpu"):
        pytest.skip("this CPU does not compute bf16")
    module = build("tiny", TINY)
    assert_agrees(TorchEngine(module, TINY, precision="bf16"), module, pixels(TINY, 8), TINY, 0.02)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "int8"])
def test_a_precision_that_the_cpu_lacks_is_refused(build: Build, precision: str) -> None:
    if precision in precisions("cpu"):
        pytest.skip(f"this CPU computes {precision}")
    with pytest.raises(EngineError, match=rf"{precision}.*use fp32"):
        TorchEngine(build("tiny", TINY), TINY, precision=precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused(build: Build) -> None:
    with pytest.raises(EngineError, match="no CUDA device"):
        TorchEngine(build("tiny", TINY), TINY, device="cuda")


CUDA_TOLERANCE = {"fp32": 1e-5, "tf32": 0.01, "fp16": 0.01, "bf16": 0.1}
"""Probabilities of a ResNet-18 with random weights, whose logits reach 4."""


def assert_cuda_agrees(
    module: nn.Module, plain: nn.Module, images: NDArray[np.uint8], precision: str
) -> None:
    if precision not in precisions("cuda"):
        pytest.skip(f"this device does not compute {precision}")
    engine = TorchEngine(module, SMALL, precision=precision, device="cuda")
    assert_agrees(engine, plain, images, SMALL, CUDA_TOLERANCE[precision])


@cuda
@pytest.mark.parametrize("precision", CUDA_TOLERANCE)
@pytest.mark.parametrize("count", [1, 3, GRAPH_SIZES[-1], 3 * GRAPH_SIZES[-1] + 5])
def test_cuda_agrees_with_the_plain_module_at_any_batch_size(
    build: Build, pixels: Pixels, count: int, precision: str
) -> None:
    plain = build("resnet18", SMALL)
    assert_cuda_agrees(plain, plain, pixels(SMALL, count), precision)


@cuda
@pytest.mark.parametrize("precision", CUDA_TOLERANCE)
def test_cuda_agrees_with_a_module_of_grouped_convolutions(
    build: Build, pixels: Pixels, precision: str
) -> None:
    plain = build("mobilenet_v3_small", SMALL)
    assert_cuda_agrees(plain, plain, pixels(SMALL, 3), precision)


@cuda
def test_cuda_leaves_the_precision_of_other_code_as_it_was(build: Build) -> None:
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    TorchEngine(build("tiny", TINY), TINY, precision="tf32", device="cuda")
    assert [setting.fp32_precision for setting in settings] == before


@cuda
def test_engines_made_and_closed_one_after_another_leave_no_memory_on_the_gpu(
    build: Build, pixels: Pixels
) -> None:
    used = []
    for _ in range(4):
        engine = TorchEngine(build("resnet18", SMALL), SMALL, precision="fp16", device="cuda")
        engine(pixels(SMALL, 3))
        engine.close()
        used.append(torch.cuda.memory_allocated())
    assert used[1:] == used[:-1]


@cuda
def test_a_model_that_the_gpu_cannot_hold_is_refused_with_what_to_do(build: Build) -> None:
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    try:
        with pytest.raises(
            EngineError, match=r"does not run on the GPU.*out of memory.*nvidia-smi"
        ) as refused:
            TorchEngine(build("vit_b_16", Spec()), Spec(), device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(str(refused.value)) < 400


class Varies(nn.Module):
    """A network that cannot be recorded, as a detector's."""

    varies = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits


@cuda
@pytest.mark.parametrize("precision", CUDA_TOLERANCE)
def test_cuda_agrees_with_a_module_that_cannot_be_recorded(
    build: Build, pixels: Pixels, precision: str
) -> None:
    plain = build("resnet18", SMALL)
    assert_cuda_agrees(Varies(plain), plain, pixels(SMALL, 3), precision)


@cuda
def test_cuda_explains_as_the_cpu_does(build: Build, pixels: Pixels) -> None:
    plain = build("resnet18", SMALL)
    expected, found = (
        TorchEngine(copy.deepcopy(plain), SMALL, device=device).explain(pixels(SMALL, 1)[0], 3)
        for device in ("cpu", "cuda")
    )
    assert expected is not None
    assert found is not None
    assert np.allclose(found.map, expected.map, atol=1e-3 * np.abs(expected.map).max())


@cuda
def test_cuda_batches_of_any_size_in_any_order_share_memory_without_harm(
    build: Build, pixels: Pixels
) -> None:
    plain = build("resnet18", SMALL)
    engine = TorchEngine(plain, SMALL, device="cuda")
    for count in (32, 1, 17, 2, 70, 4, 1):
        assert_agrees(engine, plain, pixels(SMALL, count), SMALL, CUDA_TOLERANCE["fp32"])


@cuda
def test_cuda_answers_each_batch_with_its_own_logits(build: Build, pixels: Pixels) -> None:
    engine = TorchEngine(build("tiny", TINY), TINY, device="cuda")
    images = pixels(TINY, 100)
    together = engine(images)
    alone = np.concatenate([engine(image[None]) for image in images])
    assert np.allclose(together, alone, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "vit_b_16"])
def test_small_families_agree_with_the_plain_module(name: str, build: Build, pixels: Pixels) -> None:
    plain = build(name, Spec())
    engine = TorchEngine(copy.deepcopy(plain), Spec(), threads=2)
    assert_agrees(engine, plain, pixels(Spec(), 3), Spec(), 1e-5)
