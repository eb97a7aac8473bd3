"""Torchvision's image classifiers as a catalogue: the index by which a state dict is recognised, and presets.

`python -m pthserve.zoos.torchvision` writes index and presets again, for another torchvision.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from pthserve.images.spec import Spec
from pthserve.zoos.base import shapes
from pthserve.zoos.bounded_build import BoundedBuild
from pthserve.zoos.catalogue import Entry, blank, describe
from pthserve.zoos.layout import Part, square

INDEX = Path(__file__).with_name("torchvision.json")
PRESETS = Path(__file__).with_name("torchvision_presets.json")

AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""Heads that only training runs; a file may lack them."""

PRETRAINED = {"googlenet": {"transform_input": True}, "inception_v3": {"transform_input": True}}
"""Arguments that torchvision sets with its pretrained weights, from which nearly all such models descend. No
key tells them."""

_WIDTHS = {
    "mobilenet_v2": ("17.2.weight", 320),
    "mobilenet_v3_large": ("15.3.0.weight", 160),
    "mobilenet_v3_small": ("11.3.0.weight", 96),
}
"""A tensor that tells the width of the network, and how many rows it has at the usual width."""

_FACTORS = (0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 1.25, 1.3, 1.4, 1.5, 2.0)
"""Widths that these networks are built with."""

_RENAMED = (
    # Names in weights that torchvision saved before it renamed modules: DenseNet (0.2) and ViT (0.12).
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
)

# torchvision computes widths and depths with these, and reads the result; they cannot be on `meta`.
_COMPUTED = (torch.arange, torch.tensor)

# Most calls of PyTorch that it takes to build a module; efficientnet_v2_l takes 11,215. What a card gives as
# arguments could ask for millions of layers.
_CALLS = 50_000


class Torchvision:
    """The classifiers of torchvision; see `Catalogue`."""

    name = "torchvision"
    size_argument = "image_size"

    def names(self) -> Sequence[str]:
        """Every architecture there is."""
        found: list[str] = models.list_models(module=models)
        return found

    def index(self) -> Mapping[str, Entry]:
        """Name to entry, as written by `make_index`."""
        return _index()

    def entry(self, name: str, **kwargs: Any) -> Entry:
        """The entry of the architecture as these arguments make it."""
        module = blank(self, name, kwargs)
        last = list(shapes(module.state_dict()))[-1].rpartition(".")[0]
        return describe(module, last, self.auxiliary(name))

    def modern(self, key: str) -> str:
        """The present spelling of a name in a state dict."""
        for old, new in _RENAMED:
            key = old.sub(new, key)
        return key

    def blank(self, name: str, **kwargs: Any) -> nn.Module:
        """The architecture on the meta device: shapes without memory. Raises TypeError or ValueError."""
        if name in AUXILIARY:
            kwargs = {"init_weights": False, **kwargs}
        with torch.device("meta"), _Computed():
            module: nn.Module = models.get_model(name, weights=None, **kwargs)
        return module

    def auxiliary(self, name: str) -> tuple[str, ...]:
        """Heads that only training runs."""
        return AUXILIARY.get(name, ())

    def implied(self, name: str, body: Part) -> dict[str, Any]:
        """The arguments of the architecture's builder that the shapes of its body tell."""
        if name.startswith("vit_"):
            _, length, _ = body.shapes["encoder.pos_embedding"]
            patch = body.shapes["conv_proj.weight"][-1]
            # One position is the class token's.
            side = square(length - 1)
            return {"image_size": side * patch} if side else {}
        if name in _WIDTHS:
            layer, usual = _WIDTHS[name]
            width = body.shapes[layer][0] / usual
            factor = min(_FACTORS, key=lambda factor: abs(factor - width))
            return {} if factor == 1 else {"width_mult": factor}
        if name.startswith(("resnet", "resnext", "wide_resnet")) and "layer1.0.conv3.weight" in body.shapes:
            width, group, *_ = body.shapes["layer1.0.conv2.weight"]
            groups = width // group
            return {"groups": groups, "width_per_group": width // groups}
        return {}

    def pretrained(self, name: str) -> dict[str, Any]:
        """Arguments that torchvision sets with its pretrained weights."""
        return PRETRAINED.get(name, {})

    def spec(self, name: str) -> Spec:
        """That of torchvision's own weights which it calls DEFAULT."""
        return _presets()[name]


@functools.cache
def _index() -> dict[str, Entry]:
    return {name: Entry(**values) for name, values in json.loads(INDEX.read_text()).items()}


@functools.cache
def _presets() -> dict[str, Spec]:
    presets = json.loads(PRESETS.read_text())
    return {name: Spec.from_dict({**values, "assumed": True}) for name, values in presets.items()}


TORCHVISION = Torchvision()


def make_index() -> dict[str, Entry]:
    """Name to entry, from the torchvision that is installed. Takes some 20 s."""
    return {name: TORCHVISION.entry(name) for name in TORCHVISION.names()}


def _plain(entry: Entry) -> dict[str, Any]:
    """The entry's values for JSON, without those that are empty."""
    return {key: value for key, value in asdict(entry).items() if value}


def make_presets() -> dict[str, Spec]:
    """Name to the preprocessing of its DEFAULT weights, from the torchvision that is installed."""
    return {
        name: _preset(models.get_model_weights(name).DEFAULT.transforms()) for name in TORCHVISION.names()
    }


def _preset(transform: Any) -> Spec:
    """`transform`, a torchvision.transforms._presets.ImageClassification, as a Spec."""
    (resize,), (crop,) = transform.resize_size, transform.crop_size
    return Spec(
        resize=resize,
        crop=(crop, crop),
        interpolation=transform.interpolation.value,
        antialias=transform.antialias,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        assumed=True,
    )


def _changed(spec: Spec) -> dict[str, Any]:
    """The fields of `spec` that have not their default values."""
    standard = Spec(assumed=spec.assumed).to_dict()
    return {name: value for name, value in spec.to_dict().items() if value != standard[name]}


def _write(file: Path, values: Mapping[str, Any]) -> None:
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


class _Computed(BoundedBuild):
    def __init__(self) -> None:
        super().__init__(_CALLS, "model of torchvision")

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _COMPUTED:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


if __name__ == "__main__":
    _write(INDEX, {name: _plain(entry) for name, entry in make_index().items()})
    _write(PRESETS, {name: _changed(spec) for name, spec in make_presets().items()})
