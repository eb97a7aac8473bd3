"""Torchvision's classification models as data, and the index by which a state dict is recognised.

`python -m pthserve.zoos.torchvision_index` writes the index again, for another torchvision.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from pthserve.zoos.layout import Layout, Part, Shape, square

INDEX = Path(__file__).with_name("torchvision.json")

AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""Heads that only training runs; a file may lack them."""

TRAINED = {"googlenet": {"transform_input": True}, "inception_v3": {"transform_input": True}}
"""Arguments that torchvision sets with its pretrained weights, from which nearly all such models descend. No
key tells them."""

INPUT_SIZE = {"inception_v3": 299}
"""Side of the square image in pixels, where it is not `DEFAULT_SIZE`."""

DEFAULT_SIZE = 224

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


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index keeps of an architecture, whose body is all but its head and its auxiliary heads.

    last: path of the layer that gives the classes. tops: the body's top-level names, each with its number
    among the module's children (None: a parameter). count: names in the body. digest, sketch: as in
    `layout.Part`.
    """

    last: str
    tops: dict[str, int | None]
    count: int
    digest: str
    sketch: list[int]

    @property
    def head(self) -> str:
        """Top-level name of the head."""
        return self.last.partition(".")[0]

    @property
    def spellings(self) -> list[dict[str, str]]:
        """Ways in which a file may call the body's top-level names: as they are, and by number, as in
        `nn.Sequential(*model.children())`."""
        named = {top: top for top in self.tops}
        numbered = {str(number): top for top, number in self.tops.items()}
        return [named] if None in self.tops.values() else [named, numbered]


def names() -> list[str]:
    """Every architecture there is."""
    found: list[str] = models.list_models(module=models)
    return found


@functools.cache
def index() -> dict[str, Entry]:
    """Name to entry, as written by `make_index`."""
    return {name: Entry(**values) for name, values in json.loads(INDEX.read_text()).items()}


def make_index() -> dict[str, Entry]:
    """Name to entry, from the torchvision that is installed. Takes some 20 s."""
    return {name: describe(name, blank(name)) for name in names()}


def describe(name: str, module: nn.Module) -> Entry:
    """The entry of the architecture called `name`, as `module` is built."""
    layout = Layout(shapes(module.state_dict()))
    last = list(layout.shapes)[-1].rpartition(".")[0]
    numbers = {child: number for number, (child, _) in enumerate(module.named_children())}
    skipped = {last.partition(".")[0], *AUXILIARY.get(name, ())}
    tops = {top: numbers.get(top) for top in layout.children[()] if top not in skipped}
    body = layout.part((), {top: top for top in tops})
    return Entry(last, tops, len(body.shapes), body.digest, body.sketch)


def blank(name: str, **kwargs: Any) -> nn.Module:
    """The architecture on the meta device: shapes without memory. Raises TypeError or ValueError."""
    if name in AUXILIARY:
        kwargs = {"init_weights": False, **kwargs}
    with torch.device("meta"), _Computed():
        module: nn.Module = models.get_model(name, weights=None, **kwargs)
    return module


class _Computed(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self._calls += 1
        if self._calls > _CALLS:
            raise ValueError("it has more layers than any model of torchvision")
        kwargs = dict(kwargs or {})
        if func in _COMPUTED:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def implied(name: str, body: Part) -> dict[str, Any]:
    """The arguments of the architecture's builder that the shapes of its body tell."""
    if name.startswith("vit_"):
        _, length, _ = body.shapes["encoder.pos_embedding"]
        patch = body.shapes["conv_proj.weight"][-1]
        # One position is the class token's.
        side = square(length - 1)
        return {"image_size": side * patch} if side else {}
    return {}


def shapes(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    """Name to shape, without the counters that files of before PyTorch 0.4.1 lack."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }


def modern(name: str) -> str:
    """The present spelling of a name in a state dict."""
    for old, new in _RENAMED:
        name = old.sub(new, name)
    return name


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(asdict(entry))}" for name, entry in make_index().items())
    INDEX.write_text("{\n" + ",\n".join(lines) + "\n}\n")
