"""A file that fits architectures which compute differently: who decides, and what is said if nobody does."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from pthserve.certainty import Origin
from pthserve.errors import AmbiguousArchitecture
from pthserve.images.preprocess import OWN_MAX_PIXELS, crop, normalise
from pthserve.images.spec import Spec
from pthserve.loading.load import build, load
from pthserve.options import ModelOptions
from pthserve.planning.crops import samples
from pthserve.zoos.timm import TIMM

from ..cli.called import called
from ..linear import noise, png

NAME, TWIN = "test_efficientnet_ln", "test_efficientnet_gn"
"""Two of timm's smallest, with the same tensors; one normalises over layers, and one over groups."""
QUICK = ModelOptions(engine="torch", precision="fp32", device="cpu", tune_budget=0, threads=1)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(4)
    module = timm.create_model(NAME, num_classes=5)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5 if parameter.ndim == 1 else (1.5 / parameter[0].numel()) ** 0.5)
    return module.eval()


@pytest.fixture
def folder(module: nn.Module, tmp_path: Path) -> Path:
    """A file whose name says nothing, without a card."""
    torch.save(module.state_dict(), tmp_path / "model.pth")
    (tmp_path / "photo.png").write_bytes(png(noise(1)))
    return tmp_path


def answer(image: Path, module: nn.Module, spec: Spec) -> dict[str, Any]:
    """The fields of a golden image with the module's answer."""
    pixels = crop(image.read_bytes(), spec, max_pixels=OWN_MAX_PIXELS)
    with torch.inference_mode():
        probabilities = module(torch.from_numpy(normalise(pixels[None], spec))).softmax(1)[0]
    best = int(probabilities.argmax())
    return {"image": image.name, "class_index": best, "probability": round(float(probabilities[best]), 6)}


def golden_card(folder: Path, module: nn.Module, wrong: float = 0.0) -> Path:
    """`folder` with a card whose golden image has the module's answer, or one that is off by `wrong`."""
    golden = answer(folder / "photo.png", module, TIMM.spec(NAME))
    golden["probability"] -= wrong
    (folder / "model.yaml").write_text(json.dumps({"weights": "model.pth", "golden": [golden]}))
    return folder


def test_a_file_that_fits_two_architectures_is_refused_with_the_line_that_decides(folder: Path) -> None:
    with pytest.raises(AmbiguousArchitecture, match=f"`--architecture timm/{TWIN}`") as caught:
        load(str(folder / "model.pth"), QUICK)
    assert f"timm/{NAME}" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAME, TWIN])
def test_the_option_decides_and_counts_more_than_the_card(folder: Path, name: str) -> None:
    other = TWIN if name == NAME else NAME
    (folder / "model.yaml").write_text(f"architecture: timm/{other}\n")
    model = load(str(folder), QUICK.model_copy(update={"architecture": f"timm/{name}"}))
    assert model.architecture == f"timm/{name}"
    assert load(str(folder), QUICK).architecture == f"timm/{other}"


@pytest.mark.slow
def test_golden_images_decide_where_one_architecture_gives_their_answers(
    folder: Path, module: nn.Module
) -> None:
    built = build(str(golden_card(folder, module)), QUICK)
    assert built.architecture.name == f"timm/{NAME}"
    inferred = built.inferred[0]
    assert (inferred.subject, inferred.origin) == ("architecture", Origin.GOLDEN)


@pytest.mark.slow
def test_they_decide_it_together_with_what_else_is_open(folder: Path, module: nn.Module) -> None:
    """The photos were squashed, and neither that nor which of the two it is stands anywhere."""
    module = copy.deepcopy(module)
    classifier: Any = module.get_submodule("classifier")
    with torch.no_grad():
        classifier.weight *= 5  # so that the answers depend on the photo
    torch.save(module.state_dict(), folder / "model.pth")
    spec = TIMM.spec(NAME)
    squashed = replace(spec, resize=spec.crop)
    for number, photo in enumerate(samples()[:3]):
        (folder / f"{number}.jpg").write_bytes(photo)
    golden = [answer(folder / f"{number}.jpg", module, squashed) for number in range(3)]
    (folder / "model.yaml").write_text(json.dumps({"weights": "model.pth", "golden": golden}))
    built = build(str(folder), QUICK)
    assert (built.architecture.name, built.spec.resize) == (f"timm/{NAME}", spec.crop)
    settled = {one.subject for one in built.inferred if one.origin is Origin.GOLDEN}
    assert settled >= {"architecture", "preprocessing"}


def test_golden_images_decide_nothing_where_no_architecture_gives_their_answers(
    folder: Path, module: nn.Module
) -> None:
    with pytest.raises(AmbiguousArchitecture, match="the golden images agree with none of them"):
        build(str(golden_card(folder, module, wrong=0.2)), QUICK)


def test_golden_images_decide_nothing_where_they_are_not_checked(folder: Path, module: nn.Module) -> None:
    off = QUICK.model_copy(update={"golden": "off"})
    with pytest.raises(AmbiguousArchitecture):
        build(str(golden_card(folder, module)), off)


@pytest.mark.slow
def test_inspect_lists_the_candidates(folder: Path) -> None:
    found = json.loads(called("inspect", folder / "model.pth", "--json").stdout)
    assert found["architecture"] is None
    assert sorted(map(sorted, found["candidates"])) == [[f"timm/{TWIN}"], [f"timm/{NAME}"]]
    shown = called("inspect", folder / "model.pth").stdout
    assert f"timm/{NAME}" in shown
    assert f"timm/{TWIN}" in shown
    named = json.loads(
        called("inspect", folder / "model.pth", "--json", "--architecture", f"timm/{NAME}").stdout
    )
    assert (named["architecture"], named["candidates"]) == (f"timm/{NAME}", [])
