"""int8 is found for a model that knows digits: as many layers as the comparison with PyTorch allows."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import nn

from pthserve.engines import quantized_graph
from pthserve.engines.openvino_engine import outputs
from pthserve.errors import EngineError
from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec
from pthserve.options import ModelOptions
from pthserve.planning import quantize, validation
from pthserve.planning.agreement import CLEAR
from pthserve.planning.candidates import Candidate, EngineFactory, Quantized
from pthserve.planning.examiner import Examiner
from pthserve.tasks.classification import CLASSIFICATION, softmax

pytestmark = pytest.mark.slow

SPEC = Spec(resize=8, crop=(8, 8), mean=(0.5,), std=(0.5,))
INT8 = Candidate("openvino", "int8", "cpu", 1)
KNOWN, PHOTOS = 1200, 120
"""Digits that the model is trained on, and of the others those that int8 is made with."""


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """uint8 (n, 8, 8, 1), and their classes."""
    images, classes = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8, 1) * 255 / 16).round().astype(np.uint8), classes


@cache
def trained() -> nn.Sequential:
    torch.manual_seed(4)
    module = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    )
    images, classes = digits()
    inputs = torch.from_numpy(normalise(images[:KNOWN], SPEC))
    expected = torch.from_numpy(classes[:KNOWN])
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(8):
        for part in torch.randperm(KNOWN).reshape(-1, 60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs[part]), expected[part], label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return module.eval()


def with_an_outlier(scale: float = 1000.0) -> nn.Sequential:
    """The same answers, out of a channel whose values are so large that int8 rounds all others to 0."""
    module = copy.deepcopy(trained())
    first, second = module[0], module[2]
    with torch.no_grad():
        channel = int(first.weight.flatten(1).norm(dim=1).argmax())
        first.weight[channel] *= scale
        first.bias[channel] *= scale
        second.weight[:, channel] /= scale
    return module


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(digits()[0][KNOWN : KNOWN + PHOTOS]):
        Image.fromarray(image[..., 0]).save(folder / f"{number:03}.png")
    return folder


def examined(module: nn.Module, photos: Path, **more: Any) -> Examiner:
    chosen = {"precision": "int8", "device": "cpu", "engine": "openvino", "tolerance": 0.04} | more
    options = ModelOptions(threads=1, calibration=photos, **chosen)
    engines = EngineFactory(module, SPEC, options, CLASSIFICATION)
    return Examiner(engines, validation.crops(options, (), SPEC, ()))


def quantized(examiner: Examiner) -> Quantized:
    examiner.prepare([INT8])
    assert examiner.engines.quantized is not None
    return examiner.engines.quantized


def kept_on_unseen(examiner: Examiner) -> float:
    """The share of clear decisions on digits that nothing was made with that int8 keeps."""
    tensors = normalise(digits()[0][KNOWN + PHOTOS :], SPEC)
    made = examiner.engines.quantized
    assert made is not None
    reference = softmax(outputs(examiner.engines.graph, tensors, 1))
    found = CLASSIFICATION.agree(softmax(outputs(made.graph, tensors, 1)), reference, CLEAR)
    assert found.clear is not None
    assert found.kept is not None
    assert found.clear.sum() > 400
    return float(found.kept[found.clear].mean())


def test_where_the_answers_agree_all_layers_are_at_int8(photos: Path) -> None:
    examiner = examined(trained(), photos)
    how = quantized(examiner).how
    assert (how.floating, how.share, how.whole, how.layers) == ({}, 1.0, "", 4)
    assert kept_on_unseen(examiner) >= 0.995


def test_the_layer_that_int8_harms_is_left_and_the_others_are_not(photos: Path) -> None:
    examiner = examined(with_an_outlier(), photos)
    how = quantized(examiner).how
    assert how.floating == {"Convolution": 1}
    assert 0.2 < how.share < 0.9
    assert "mean difference" in how.whole
    assert "3 of 4 layers at int8" in how.words()
    assert "1 Convolution" in how.words()
    assert kept_on_unseen(examiner) >= 0.995
    with_all = replace(examiner.engines, quantized=quantize_all(examiner))
    assert kept_on_unseen(replace(examiner, engines=with_all)) < 0.9


def quantize_all(examiner: Examiner) -> Quantized:
    tensors = normalise(digits()[0][KNOWN : KNOWN + PHOTOS], SPEC)
    return quantize.all_layers(examiner.engines.graph, tensors)


def test_the_same_photos_give_the_same_choice(photos: Path) -> None:
    assert len({repr(quantized(examined(with_an_outlier(), photos)).how) for _ in range(2)}) == 1


def test_what_holds_nowhere_is_refused_with_the_figures_and_the_way_on(photos: Path) -> None:
    with pytest.raises(EngineError, match="with all 4 layers at int8, on 208 crops a difference is") as error:
        quantized(examined(with_an_outlier(), photos, tolerance=0.0))
    assert "of the multiplications at int8" in str(error.value)
    assert "--tolerance 0." in str(error.value)
    assert "--precision auto" in str(error.value)


def test_weights_have_8_bits_where_the_sums_do_not_saturate(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_graph, "cpu_flags", lambda: frozenset({"avx2", "avx_vnni"}))
    assert quantized(examined(trained(), photos)).how.weight_bits == 8
    assert quantized(examined(trained(), photos, weight_bits=7)).how.weight_bits == 7
    monkeypatch.setattr(quantized_graph, "cpu_flags", lambda: frozenset({"avx2"}))
    assert quantized(examined(trained(), photos)).how.weight_bits == 7
    with pytest.raises(EngineError, match="8 bits need VNNI or AMX"):
        quantized(examined(trained(), photos, weight_bits=8))


def test_8_bits_are_not_run_where_the_sums_saturate(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_graph, "cpu_flags", lambda: frozenset({"avx512_vnni"}))
    engines = (examiner := examined(trained(), photos)).engines
    quantized(examiner)
    packed = replace(engines, module=None, options=engines.options.model_copy(update={"precision": "auto"}))
    assert INT8 in packed.candidates()
    monkeypatch.setattr(quantized_graph, "cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    assert {one.precision for one in packed.candidates()} >= {"fp32"}
    assert INT8 not in packed.candidates()
    with pytest.raises(EngineError, match=r"weights of 8 bits.*this processor has neither.*--weight-bits 7"):
        packed.make(INT8)
