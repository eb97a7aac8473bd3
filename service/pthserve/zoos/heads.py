"""Heads: the layers that a user puts in place of torchvision's, rebuilt from their names and shapes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pthserve.zoos.base import Choice, Option
from pthserve.zoos.layout import Shape

_ACTIVATIONS: dict[str, Callable[[float], nn.Module]] = {
    "relu": lambda _: nn.ReLU(),
    "gelu": lambda _: nn.GELU(),
    "tanh": lambda _: nn.Tanh(),
    "silu": lambda _: nn.SiLU(),
    "leaky_relu": nn.LeakyReLU,
    "elu": lambda _: nn.ELU(),
    "hardswish": lambda _: nn.Hardswish(),
    "sigmoid": lambda _: nn.Sigmoid(),
    "none": lambda _: nn.Identity(),
}
"""A card's name to the activation with a slope, which `leaky_relu` alone has."""

_NAMES = {
    "relu": "ReLU",
    "gelu": "GELU",
    "tanh": "Tanh",
    "silu": "SiLU",
    "leaky_relu": "LeakyReLU",
    "elu": "ELU",
    "hardswish": "Hardswish",
    "sigmoid": "Sigmoid",
    "none": "nothing",
}

_USUAL = (
    *((name, 0.0) for name in ("relu", "gelu", "silu", "tanh", "none", "hardswish", "elu", "sigmoid")),
    *(("leaky_relu", slope) for slope in (0.01, 0.1, 0.2)),
)
"""What may stand between linear layers, the most common first; with what slopes."""


@dataclass(frozen=True, slots=True)
class Head:
    """A head on the meta device.

    names: its own name of a tensor to the file's. outputs: how many numbers it gives.
    gaps: where in `module` activations stand, which no file tells.
    fastai: whether it begins as those of fastai, which puts two poolings and a flattening before a norm.
    alone: whether it is one linear layer, the first in an `nn.Sequential`: nobody wraps a layer for nothing,
    and what follows it leaves no trace.
    """

    module: nn.Sequential
    names: dict[str, str]
    outputs: int
    gaps: tuple[int, ...]
    fastai: bool
    alone: bool

    def activate(self, activation: str, slope: float = 0.01) -> Option:
        """`activation`, as a card names it, in the gaps."""

        def apply() -> None:
            for gap in self.gaps:
                self.module[gap] = _ACTIVATIONS[activation](slope)

        leaky = activation == "leaky_relu"
        name = _NAMES[activation] + f" with a slope of {slope}" * leaky
        return Option(
            f"{name} between the linear layers of the head",
            f"head: {{activation: {activation}{f', slope: {slope}' * leaky}}}",
            apply,
        )

    @property
    def activations(self) -> Choice:
        """What may stand in the gaps."""
        return Choice("activation", tuple(self.activate(*option) for option in _USUAL))


@dataclass(frozen=True, slots=True)
class _Layer:
    path: tuple[str, ...]
    leaves: dict[str, Shape]

    @property
    def linear(self) -> bool:
        return len(self.leaves.get("weight", ())) == 2

    def build(self, width: int) -> nn.Module | None:
        """The layer on the meta device, if it takes `width` numbers and is of a kind that is known."""
        sizes = {leaf: shape for leaf, shape in self.leaves.items() if shape}
        if self.linear and self.leaves["weight"][1] == width:
            layer: nn.Module = nn.Linear(width, self.leaves["weight"][0], bias="bias" in sizes, device="meta")
        elif "running_mean" in sizes:
            layer = nn.BatchNorm1d(width, affine="weight" in sizes, device="meta")
        elif sizes.keys() == {"weight", "bias"}:
            layer = nn.LayerNorm(width, device="meta")
        else:
            return None
        built = {
            name: tuple(t.shape) for name, t in layer.state_dict().items() if name != "num_batches_tracked"
        }
        return layer if built == sizes else None


def rebuild(shapes: Mapping[str, Shape], width: int, *, before: tuple[nn.Module, ...] = ()) -> Head | None:
    """The head whose tensors are `shapes`, on `width` features; None unless a row of linear layers and norms.

    Dropout has no effect at inference and is left out. What stands between two linear layers leaves no trace
    but a gap in their numbers: where there is one, or names instead of numbers, ReLU stands in it.
    before: modules that come first.
    """
    layers = _ordered(shapes, width)
    if not layers or not layers[-1].linear:
        return None
    modules: list[nn.Module] = [*before, nn.Flatten(1)]
    names: dict[str, str] = {}
    gaps: list[int] = []
    for layer, follows in zip(layers, _gaps(layers), strict=True):
        built = layer.build(width)
        assert built is not None  # `_ordered` built it
        for leaf in layer.leaves:
            names[f"{len(modules)}.{leaf}"] = ".".join((*layer.path, leaf))
        modules.append(built)
        width = layer.leaves["weight"][0] if layer.linear else width
        if follows:
            gaps.append(len(modules))
            modules.append(nn.ReLU())
    alone = len(layers) == 1 and layers[0].path[-1:] == ("0",)
    fastai = layers[0].path[-1:] == ("2",) and not layers[0].linear
    return Head(nn.Sequential(*modules), names, width, tuple(gaps), fastai, alone)


class TwoPoolings(nn.Module):
    """Maximum and average of each channel side by side, as fastai's `AdaptiveConcatPool2d`."""

    words = "the maximum and the average of each channel, side by side"

    def __init__(self) -> None:
        super().__init__()
        self.poolings = nn.ModuleList([nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(1)])

    def forward(self, features: Tensor) -> Tensor:
        """Twice the channels, of one place each."""
        return torch.cat([pooling(features) for pooling in self.poolings], 1)

    @property
    def orders(self) -> Choice:
        """Which of the two comes first: no file tells."""

        def ordered(*poolings: nn.Module) -> Callable[[], None]:
            return lambda: setattr(self, "poolings", nn.ModuleList(poolings))

        most, average = self.poolings
        setting = "architecture: package.module:callable"
        return Choice(
            "head",
            (
                Option(self.words, setting, ordered(most, average)),
                Option(
                    "the average and the maximum of each channel, side by side",
                    setting,
                    ordered(average, most),
                ),
            ),
        )


def _ordered(shapes: Mapping[str, Shape], width: int) -> list[_Layer]:
    """The layers in the order in which they run: by number, else as in the file, and each takes what the one
    before it gives. Empty where that is not possible."""
    leaves: dict[tuple[str, ...], dict[str, Shape]] = {}
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        leaves.setdefault(tuple(path), {})[leaf] = shape
    waiting = [_Layer(path, found) for path, found in leaves.items()]
    if all(layer.path and layer.path[-1].isdigit() for layer in waiting):
        waiting.sort(key=lambda layer: [int(part) if part.isdigit() else -1 for part in layer.path])
    ordered = []
    while waiting:
        taken = next((layer for layer in waiting if layer.build(width) is not None), None)
        if taken is None:
            return []
        waiting.remove(taken)
        ordered.append(taken)
        width = taken.leaves["weight"][0] if taken.linear else width
    return ordered


def _gaps(layers: list[_Layer]) -> list[bool]:
    """For each layer whether ReLU follows it: once between two linear layers, in the first gap."""
    follows = [False] * len(layers)
    linears = [number for number, layer in enumerate(layers) if layer.linear]
    for start, end in pairwise(linears):
        between = range(start, end)
        gaps = [number for number in between if _apart(layers[number], layers[number + 1])]
        if gaps:
            numbered = layers[start].path[-1:] and layers[start].path[-1].isdigit()
            follows[gaps[0] if numbered else end - 1] = True
    return follows


def _apart(layer: _Layer, following: _Layer) -> bool:
    """Whether there may be something between the two: all but neighbours in one `nn.Sequential`."""
    *parent, name = layer.path
    *other, next_name = following.path
    if parent != other or not (name.isdigit() and next_name.isdigit()):
        return True
    return int(next_name) - int(name) > 1


def features(head: nn.Module) -> int | None:
    """How many numbers torchvision's `head` takes; None where it takes a map of features."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            return layer.in_features
        if isinstance(layer, nn.LayerNorm):
            return int(layer.normalized_shape[0])
        if isinstance(layer, nn.Conv2d):
            return None
    return None


def leading(head: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of torchvision's `head` that come before its first parameter, such as its pooling."""
    found: list[nn.Module] = []
    if isinstance(head, nn.Sequential):
        for layer in head:
            if any(True for _ in layer.parameters()):
                break
            found.append(layer)
    return tuple(found)


def widen(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The convolution, on the meta device, for images of `channels` channels."""
    return nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device=torch.device("meta"),
    )
