"""timm's image classifiers as a catalogue: the index by which a state dict is recognised, and presets.

`python -m pthserve.zoos.timm_index` writes the index again, for another timm. The library itself is imported
only when one of its architectures is built.
"""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pthserve.images.spec import Spec
from pthserve.text import quoted
from pthserve.zoos.bounded_build import BoundedBuild
from pthserve.zoos.catalogue import Entry, blank, describe
from pthserve.zoos.layout import Part, square

INDEX = Path(__file__).with_name("timm.json")

_REFUSED = ("pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay")
"""Arguments of timm's `create_model` that fetch or read files; a card may not give them."""

_COMPUTED = re.compile(r"(^|\.)(relative_position_index|relative_coords_table|attn_mask)$")
"""Tensors that older versions of timm saved, and that are computed when the module is built."""

# In-place functions by which timm and PyTorch initialise a parameter.
_INITIALISING = frozenset(
    getattr(torch.Tensor, f"{name}_")
    for name in ("add", "clamp", "copy", "div", "erfinv", "fill", "mul", "normal", "sub", "uniform", "zero")
)
_RANDOM = frozenset((torch.Tensor.normal_, torch.Tensor.uniform_))

_DEFAULTS: dict[str, Any] = {
    "input_size": [3, 224, 224],
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
"""What timm takes where a `pretrained_cfg` says nothing."""

_LARGEST = 4096
"""Largest side of an image in pixels that a `pretrained_cfg` may state."""

# Most calls of PyTorch that it takes to build a module. A card's arguments could ask for millions.
_CALLS = 100_000


@dataclass(frozen=True, slots=True)
class Law:
    """How a dimension of a tensor follows from an argument of timm's builder.

    argument: `img_size` or `window_size`. tensor: its short name, as in `layout.Part`; axis: of its shape.
    kind: `side`, for the number of patches along the image; `count`, for that in all; `edge`, for the
    distances between two of them along the image; or `table`, for all distances.
    step: pixels of a patch. extra: numbers beside those of the patches. default: the argument's.
    """

    argument: str
    tensor: str
    axis: int
    kind: str
    step: int
    extra: int
    default: int

    def dimension(self, value: int) -> int:
        """The dimension for a value of the argument."""
        side = value // self.step
        edge = 2 * side - 1
        return self.extra + {"side": side, "count": side**2, "edge": edge, "table": edge**2}[self.kind]

    def value(self, dimension: int) -> int | None:
        """The value of the argument for a dimension; None where there is none."""
        number: int | None = dimension - self.extra
        if self.kind in ("count", "table"):
            number = square(max(dimension - self.extra, 0))
        if not number:
            return None
        if self.kind in ("edge", "table"):
            number = (number + 1) // 2
        value = number * self.step
        return value if self.dimension(value) == dimension else None


class Timm:
    """The classifiers of timm; see `Catalogue`."""

    name = "timm"
    size_argument = "img_size"

    def names(self) -> Sequence[str]:
        """Every architecture there is."""
        return list(self.index())

    def index(self) -> Mapping[str, Entry]:
        """Name to entry, as written by `timm_index`."""
        return _index().entries

    def entry(self, name: str, **kwargs: Any) -> Entry:
        """The entry of the architecture as these arguments make it."""
        known = self.index()[name]
        if not kwargs.keys() - {"num_classes"}:
            return known
        module = blank(self, name, kwargs)
        return replace(
            describe(module, known.last, beside=known.beside), first=known.first, group=known.group
        )

    def modern(self, key: str) -> str:
        """The name itself, and "" for what is no weight."""
        return "" if _COMPUTED.search(key) else key

    def blank(self, name: str, **kwargs: Any) -> nn.Module:
        """The architecture with memory for its parameters that nothing was written to; its buffers are there.

        Raises whatever timm does for arguments that it cannot use.
        """
        if refused := [key for key in _REFUSED if key in kwargs]:
            raise ValueError(f"{', '.join(refused)}: only the weights file is read")
        import timm

        with _Uninitialised():
            module: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
        return module

    def auxiliary(self, name: str) -> tuple[str, ...]:  # noqa: ARG002
        """None."""
        return ()

    def implied(self, name: str, body: Part) -> dict[str, Any]:
        """The arguments that the shapes of the body tell: channels, size of the image and of its windows."""
        arguments: dict[str, Any] = {}
        first = body.shapes.get(self.index()[name].first, ())
        if len(first) == 4 and first[1] in (1, 2, 4):  # more are not the image's, but made of its pixels
            arguments["in_chans"] = first[1]
        law = self.law(name)
        shape = body.shapes.get(law.tensor, ()) if law else ()
        if law and law.axis < len(shape) and (value := law.value(shape[law.axis])) not in (None, law.default):
            arguments[law.argument] = value
            if law.argument != self.size_argument:
                # The image has as many windows as by default.
                assert value is not None
                arguments[self.size_argument] = self.size(name) * value // law.default
        return arguments

    def law(self, name: str) -> Law | None:
        """How the architecture's tensors follow the size of the image or of its windows, where they do."""
        return _index().laws.get(name)

    def pretrained(self, name: str) -> dict[str, Any]:  # noqa: ARG002
        """None: what timm's pretrained weights need is part of the name."""
        return {}

    def spec(self, name: str) -> Spec:
        """The preprocessing of the architecture's default weights.

        name: may end in a tag, such as `resnet50.a1_in1k`: then that of these weights.
        """
        return preset(**self.preset(name))

    def preset(self, name: str) -> dict[str, Any]:
        """The values that `preset` takes, of the weights called `name`; see `spec`."""
        plain, _, tag = name.partition(".")
        tags = _index().tags[plain]
        return dict(_index().presets[tags.get(tag, next(iter(tags.values())))])

    def size(self, name: str) -> int:
        """Side of the square image in pixels."""
        return self.spec(name).crop[0]

    def tags(self, name: str) -> Sequence[str]:
        """The pretrained weights there are of an architecture, the default ones first."""
        return list(_index().tags[name])


TIMM = Timm()


def computing_alike(catalogue: str, name: str) -> int:
    """The number of the architectures that compute the same as this one; 0 where it is by itself."""
    if catalogue == TIMM.name:
        return _index().entries[name].group
    return _index().torchvision.get(name, 0)


def preset(
    input_size: Sequence[int],
    crop_pct: float,
    crop_mode: str,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Spec:
    """What timm's `create_transform(is_training=False)` does with these values of a `pretrained_cfg`.

    Raises:
        ValueError: no spec does the same.
    """
    _, height, width = input_size
    scaled = (math.floor(height / crop_pct), math.floor(width / crop_pct))
    if crop_mode == "border" or (crop_mode != "squash" and height != width):
        raise ValueError(f"crop_mode {crop_mode} for images of {height}x{width} pixels is not supported")
    if interpolation not in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"):
        raise ValueError(f"interpolation {interpolation} is not supported")
    return Spec(
        resize=scaled if crop_mode == "squash" else scaled[0],
        crop=(height, width),
        interpolation=interpolation,  # type: ignore[arg-type]
        mean=tuple(mean),
        std=tuple(std),
        assumed=True,
    )


def completed(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What `preset` takes, out of a `pretrained_cfg`; where it says nothing, timm's defaults.

    Raises:
        ValueError: a value cannot be.
    """
    values = {key: cfg.get(key) or default for key, default in _DEFAULTS.items()}
    for key, default in _DEFAULTS.items():
        value = values[key]
        if isinstance(default, list):
            right = isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))
        else:
            right = _is_number(value) if isinstance(default, float) else isinstance(value, str)
        if not right:
            raise ValueError(f"{key} is {quoted(value)}")
    size, ratio = [int(side) for side in values["input_size"]], values["crop_pct"]
    if not (min(size) > 0 and max(size) <= _LARGEST and 0.1 <= ratio <= 10 and min(values["std"]) > 0):
        raise ValueError(f"input_size is {size}, crop_pct {ratio}, std {values['std']}")
    return values | {"input_size": size}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class _Index:
    entries: Mapping[str, Entry]
    laws: Mapping[str, Law]
    tags: Mapping[str, Mapping[str, int]]
    presets: Sequence[Mapping[str, Any]]
    torchvision: Mapping[str, int]


@functools.cache
def _index() -> _Index:
    values = json.loads(INDEX.read_text())
    entries, laws, tags = {}, {}, {}
    for name, (body, last, first, sizes, head, beside, group, law, presets) in values["names"].items():
        tops, count, digest, sketch = values["bodies"][body]
        entries[name] = Entry(
            last, values["tops"][tops], count, digest, sketch, first, sizes, head, tuple(beside), group
        )
        tags[name] = presets
        if law:
            laws[name] = Law(*law)
    return _Index(entries, laws, tags, values["presets"], values["torchvision"])


class _Uninitialised(BoundedBuild):
    """Skips what initialises parameters, whose values come from the file; buffers are computed as always."""

    def __init__(self) -> None:
        super().__init__(_CALLS, "model of timm")

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _INITIALISING or getattr(func, "__module__", None) == "torch.nn.init":
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, nn.Parameter):
                return tensor
            if func in _RANDOM:  # for a parameter, into which it is copied
                return tensor.zero_()
        return func(*args, **kwargs)
