"""timm's architectures, drawn of all families: bare weights and packs answer as timm's own module does."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pthserve.errors import ModelError
from pthserve.loading.load import load
from pthserve.loading.model import Model
from pthserve.loading.pack import pack
from pthserve.options import ModelOptions

from .timm_modules import LARGE, PHOTOS, SMALL, answers, draw, made, photos

FEW, ALL = 3, 80
"""How many architectures are drawn for the slow test, and for the long one."""
WITHIN = 1e-4
"""Most by which an output may differ, as a share of the largest one, and a probability."""
ROUNDINGS = 3
"""Or so many times what timm's own fp32 differs from its fp64, which is much for a few networks."""
COUNT = 2
"""Photos."""


def difference(model: Model, expected: Tensor) -> float:
    """The largest difference of the photos' logits, as a share of the largest, or of a probability."""
    found = [model(photo) for photo in PHOTOS[:COUNT]]
    logits = np.stack([one.logits for one in found]) - expected.numpy()
    probabilities = np.stack([one.probabilities for one in found]) - expected.softmax(1).numpy()
    return float(max(np.abs(logits).max() / expected.abs().max(), np.abs(probabilities).max()))


def rounding(name: str) -> float:
    """By how much timm's own logits at fp32 differ from those at fp64, as a share of the largest."""
    module = made(name)
    expected = answers(module, COUNT)
    pixels = photos(module, COUNT).double()
    with torch.inference_mode():
        exact: Tensor = module.double()(pixels)
    return float((expected - exact).abs().max() / exact.abs().max())


def compared(name: str, folder: Path) -> tuple[float, float]:
    """By how much the answers of the bare weights, and of a pack, differ from those of timm."""
    weights = folder / "model.pth"
    module = made(name)
    expected = answers(module, COUNT)
    assert expected.std() > 1e-3, "logits that are all alike would show nothing"
    torch.save(module.state_dict(), weights)
    del module
    options = ModelOptions(
        architecture=f"timm/{name}", precision="fp32", device="cpu", threads=1, tune_budget=0.0
    )
    with load(str(weights), options.model_copy(update={"engine": "torch"})) as model:
        bare = difference(model, expected)
    pack(str(weights), folder / "packed", options)
    with load(str(folder / "packed"), options.model_copy(update={"architecture": None})) as model:
        assert model.forward.name == "openvino"
        return bare, difference(model, expected)


def check(count: int, most: float, folder: Path, part: int = 1, parts: int = 1) -> None:
    """Draw architectures, and compare those of a part of them, the one after the other."""
    seed = int(os.environ.get("PTHSERVE_TIMM_SEED", random.randrange(10**6)))
    drawn = draw(seed, count, most)[part - 1 :: parts]
    print(f"PTHSERVE_TIMM_SEED={seed}: {len(drawn)} architectures")
    wrong, largest = {}, [0.0, 0.0]
    for name in drawn:
        try:
            found = compared(name, folder)
        except (AssertionError, ModelError) as error:
            wrong[name] = str(error)
            print(f"{name}: {error}", flush=True)
            continue
        largest = [max(pair) for pair in zip(largest, found, strict=True)]
        print(f"{name}: bare {found[0]:.1e}, packed {found[1]:.1e}", flush=True)
        if max(found) > WITHIN and max(found) > ROUNDINGS * rounding(name):
            wrong[name] = f"bare {found[0]:.1e}, packed {found[1]:.1e}"
    print(f"largest difference: bare {largest[0]:.1e}, packed {largest[1]:.1e}")
    assert not wrong, f"PTHSERVE_TIMM_SEED={seed}"


@pytest.mark.slow
def test_architectures_that_are_drawn_answer_as_timms_own_bare_and_packed(tmp_path: Path) -> None:
    """PTHSERVE_TIMM_SEED draws the same again."""
    check(FEW, SMALL, tmp_path)


@pytest.mark.slow
@pytest.mark.long
def test_architectures_of_all_families_answer_as_timms_own_bare_and_packed(tmp_path: Path) -> None:
    """PTHSERVE_TIMM_PART=1/8 runs a part of them."""
    part, parts = map(int, os.environ.get("PTHSERVE_TIMM_PART", "1/1").split("/"))
    check(ALL, LARGE, tmp_path, part, parts)


@pytest.mark.slow
@pytest.mark.long
def test_a_first_convolution_on_blocks_of_pixels_answers_as_timms_own(tmp_path: Path) -> None:
    """TResNet puts blocks of 4 x 4 pixels into 48 channels before its first convolution."""
    assert max(compared("tresnet_m", tmp_path)) < WITHIN
