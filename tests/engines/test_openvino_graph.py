"""OpenVINO's graphs: modules become some, which are saved and read, and what is none is refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pthserve.engines.openvino_engine import outputs
from pthserve.engines.openvino_graph import convert, read, reason, save
from pthserve.errors import EngineError
from pthserve.images.spec import Spec

SMALL = Spec(crop=(64, 64))
TINY = Spec(crop=(16, 20), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))

Build = Callable[[str, Spec], nn.Module]


def test_a_module_that_cannot_be_expressed_is_refused() -> None:
    class Fickle(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) if images.sum() > 0 else -images.flatten(1)

    with pytest.raises(EngineError, match=r"Fickle.*--engine torch"):
        convert(Fickle(), TINY)


class Keeping(nn.Module):
    """Keeps what it computed from its weights for the next call, as LeViT and EfficientViT do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.kept: dict[str, torch.Tensor] = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        device = str(images.device)
        if device not in self.kept:
            self.kept[device] = self.scale * 2
        return images.mean((2, 3)) * self.kept[device]


@pytest.mark.slow
@pytest.mark.parametrize("called", [False, True])
def test_a_module_that_keeps_tensors_for_the_next_call_is_converted_and_left_as_it_was(
    called: bool, tmp_path: Path
) -> None:
    module = Keeping().eval()
    images = torch.rand(2, *SMALL.tensor_shape)
    with torch.no_grad():
        if called:
            module(images)
        save(convert(module, SMALL), tmp_path / "model.xml")
        expected = module(images)
    assert type(module.kept["cpu"]) is torch.Tensor
    found = outputs(read(tmp_path / "model.xml"), images.numpy(), 1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


class Embedding(nn.Module):
    """Resizes its position embeddings to the image, as vision transformers for any size do."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.position = nn.Parameter(torch.rand(1, 3, 5, 5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        position = nn.functional.interpolate(
            self.position * 2, images.shape[2:], mode=self.mode, antialias=True
        )
        return (images * position).flatten(2).mean(2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_position_embeddings_are_resized_as_by_torch(mode: str) -> None:
    module = Embedding(mode).eval()
    images = torch.rand(3, *SMALL.tensor_shape)
    with torch.no_grad():
        expected = module(images)
    found = outputs(convert(module, SMALL), images.numpy(), 1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


@pytest.mark.slow
def test_the_same_module_is_saved_as_the_same_bytes(build: Build, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(convert(build("tiny", TINY), TINY), tmp_path / f"{name}.xml")
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "<net>", ""])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "model.xml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EngineError, match=r"model\.xml"):
        read(path)


@pytest.mark.slow
def test_another_process_saves_the_same_bytes(tmp_path: Path) -> None:
    script = """
import sys, torch, torchvision
from pathlib import Path
from pthserve.engines.openvino_graph import convert, save
from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec
torch.manual_seed(0)
save(convert(torchvision.models.shufflenet_v2_x0_5(), Spec()), Path(sys.argv[1]))
"""
    for name in ("one", "two"):
        subprocess.run(
            [sys.executable, "-c", script, tmp_path / f"{name}.xml"],
            check=True,
            timeout=300,
            env={"PATH": "", "PYTHONHASHSEED": str(len(name) + ord(name[0]))},
        )
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Exception from src/inference/src/cpp/core.cpp:84:\nCheck 'false' failed at src/a.cpp:47:\nLoading\n"
         "Can not open file x.\n\n", "Can not open file x"),
        ("Exception from src/inference/src/cpp/core.cpp:84:\n\n", "no reason given"),
        ("first\nsecond", "first"),
        ("", "no reason given"),
    ],
)  # fmt: skip
def test_the_reason_of_an_error_is_what_is_left_without_the_places_in_openvino_s_source(
    message: str, expected: str
) -> None:
    assert reason(RuntimeError(message)) == expected
