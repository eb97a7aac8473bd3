"""Architecture: a state dict to the `nn.Module` that it belongs to, inferred from names and shapes, or named.

Torchvision's modules are built on the meta device and take the state dict's tensors as they are: nothing is
initialised, and nothing is copied that is float32 already.
"""

import difflib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pthserve.errors import ArchitectureError
from pthserve.text import quoted
from pthserve.zoos import code, fitting, torchvision_index
from pthserve.zoos.layout import Layout, Part, compare, some


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """A module with its weights, float32, in eval mode, and how it was found.

    name: torchvision's, or `package.module:callable`. prefix: what stood before each name in the file, with
    its dot. parameters: how many. input_size: side of the square image in pixels. channels: 1 or 3 of them.
    sure: `named` by the user; `exact` by names and shapes; or `assumed`, where `assumptions` says what no
    file tells. ignored: names in the file that no inference uses.
    """

    name: str
    module: nn.Module
    num_classes: int
    prefix: str
    parameters: int
    input_size: int
    channels: int
    sure: str
    assumptions: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def build(
    state_dict: Mapping[str, Tensor],
    name: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    allowed: Collection[str] = (),
) -> Architecture:
    """The module that `state_dict` fits, loaded strictly.

    name: an architecture of torchvision, or `package.module:callable`, which is imported and called where
    `allowed` has its module; without it the architecture is inferred. kwargs: for torchvision's builder or
    the callable.
    Raises ArchitectureError, whose message names what differs.
    """
    state_dict = {torchvision_index.modern(key): tensor for key, tensor in state_dict.items()}
    if name and code.is_code(name):
        return _own(state_dict, name, dict(kwargs or {}), allowed)
    if name and name not in torchvision_index.names():
        close = ", ".join(difflib.get_close_matches(name[:100], torchvision_index.names(), cutoff=0.5))
        advice = f"did you mean {close}?" if close else fitting.ADVICE
        raise ArchitectureError(f"torchvision has no architecture {quoted(repr(name))}; {advice}")
    return _torchvision(state_dict, name, dict(kwargs or {}))


def infer(state_dict: Mapping[str, Tensor]) -> str:
    """The name of the torchvision architecture that `state_dict` fits; builds nothing."""
    layout = Layout(
        torchvision_index.shapes(
            {torchvision_index.modern(key): tensor for key, tensor in state_dict.items()}
        )
    )
    return fitting.match(layout, torchvision_index.index(), None).name


def flops(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Floating-point operations of a forward pass on a batch of `input_shape`; a multiply and an add are two.

    `torch.utils.flop_counter` counts those of matrix products and convolutions, while zeros go through.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(input_shape))
    return int(counter.get_total_flops())


def _torchvision(state_dict: dict[str, Tensor], name: str | None, kwargs: dict[str, Any]) -> Architecture:
    entries = (
        {name: torchvision_index.describe(name, fitting.blank(name, kwargs))}
        if name
        else torchvision_index.index()
    )
    layout = Layout(torchvision_index.shapes(state_dict))
    match = fitting.match(layout, entries, name)
    beside: tuple[str, ...] = ()
    if fitting.averaged(match):
        # What it averages lies beside it, and is another network.
        beside = tuple(key for key in layout.shapes if not key.startswith(match.prefix))
        layout = Layout({key: shape for key, shape in layout.shapes.items() if key not in beside})
    fitted = fitting.Fit(layout, entries[match.name], match, kwargs, trained=fitting.trained(state_dict))
    _load(fitted.module, fitted.names, state_dict)
    return _describe(
        match.name,
        fitted.module,
        num_classes=fitted.outputs,
        prefix=match.prefix,
        input_size=fitted.input_size,
        sure="named" if name else "assumed" if fitted.assumptions else "exact",
        assumptions=tuple(fitted.assumptions),
        ignored=(*fitted.ignored, *beside),
    )


def _own(
    state_dict: dict[str, Tensor], name: str, kwargs: dict[str, Any], allowed: Collection[str]
) -> Architecture:
    module = _call(name, kwargs, allowed)
    shapes = torchvision_index.shapes(state_dict)
    expected = torchvision_index.shapes(module.state_dict())
    prefix = _prefix(list(shapes), list(expected))
    names = {key.removeprefix(prefix): key for key in shapes if key.startswith(prefix)}
    ignored = tuple(
        key for key, shape in shapes.items() if not key.startswith(prefix) and shape in ((), (1,))
    )
    names |= {key: key for key in shapes if not key.startswith(prefix) and key not in ignored}
    differences = compare(
        Part({key: key for key in expected}, expected),
        Part(names, {short: shapes[key] for short, key in names.items()}),
        strict=True,
    )
    if differences:
        raise ArchitectureError(f"the weights do not fit {name}: {differences}")
    _load(module, names, state_dict)
    return _describe(
        name,
        module,
        num_classes=_outputs(module, name),
        prefix=prefix,
        input_size=torchvision_index.DEFAULT_SIZE,
        sure="named",
        ignored=ignored,
    )


def _call(name: str, kwargs: dict[str, Any], allowed: Collection[str]) -> nn.Module:
    function = code.resolve(name, allowed)
    try:
        module = function(**kwargs)
    except Exception as error:  # the user's code may raise anything
        raise ArchitectureError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ArchitectureError(f"{name} gave a {type(module).__name__} and no nn.Module")
    return module


def _prefix(names: list[str], expected: list[str]) -> str:
    """What stands before most of `expected` in `names`."""
    counts: dict[str, int] = {"": 0}
    ends = set(expected)
    for name in names:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in ends:
                prefix = "".join(f"{part}." for part in parts[:depth])
                counts[prefix] = counts.get(prefix, 0) + 1
    return max(counts, key=lambda prefix: counts[prefix])


def _outputs(module: nn.Module, name: str) -> int:
    """How many classes a module gives: the width of its last linear or convolutional layer."""
    widths = [
        layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    if not widths or widths[-1] < 2:
        raise ArchitectureError(f"{name} ends in no layer that gives two classes or more")
    return widths[-1]


def _load(module: nn.Module, names: Mapping[str, str], state_dict: Mapping[str, Tensor]) -> None:
    """Put the state dict's tensors into the module; names: the module's name of each to the state dict's."""
    expected = module.state_dict()
    _check_dtypes(expected, names, state_dict)
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for key, tensor in expected.items():
        if key.endswith("num_batches_tracked"):
            mean = names.get(key.replace("num_batches_tracked", "running_mean"), key)
            tensors[key] = state_dict.get(
                mean.replace("running_mean", "num_batches_tracked"), torch.tensor(0)
            )
        elif key in names:
            tensors[key] = state_dict[names[key]].to(tensor.dtype)
    # Some modules read their version from here, and refuse to load without it.
    tensors._metadata = expected._metadata  # type: ignore[attr-defined]
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ArchitectureError(f"the weights do not fit: {' '.join(str(error).split())[:500]}") from error


def _check_dtypes(
    expected: Mapping[str, Tensor], names: Mapping[str, str], state_dict: Mapping[str, Tensor]
) -> None:
    """Raise where the file has whole numbers and the module computes with fractions: those are no weights."""
    strange = [
        f"{names[key]} ({str(state_dict[names[key]].dtype).removeprefix('torch.')})"
        for key, tensor in expected.items()
        if key in names and tensor.is_floating_point() and not state_dict[names[key]].is_floating_point()
    ]
    if strange:
        raise ArchitectureError(
            f"weights must be floating-point numbers, and these are not: {some(strange)}; save the state "
            "dict of the model as it was trained, not quantised"
        )


def _describe(name: str, module: nn.Module, **rest: Any) -> Architecture:
    module.eval()
    convolutions = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    channels = next((layer.in_channels for layer in convolutions), 3)
    if channels not in (1, 3):
        raise ArchitectureError(f"{name} takes {channels} channels; an image has 1 (grey) or 3 (RGB)")
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Architecture(name, module, parameters=parameters, channels=channels, **rest)
