"""Outputs: what a module gives for an image, found out by one forward pass."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pthserve.errors import ArchitectureError
from pthserve.text import quoted
from pthserve.zoos.layout import some

_BATCH = 2
"""Images in the pass: with one, a module that loses the dimension of the batch would not show it."""

_KINDS = {"out": "segmentation", "masks": "segmentation", "boxes": "detection", "pred_boxes": "detection"}
"""A field of what a module gives to what such models are for."""


class Logits(nn.Module):
    """A module that gives a mapping or a dataclass, of which only its `logits` are taken."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Any:
        """The logits of `images`."""
        outputs = self.module(images)
        return outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits


def probe(module: nn.Module, name: str, channels: Iterable[int], crop: tuple[int, int]) -> "Probed":
    """What `module`, which is called `name`, gives for black images of `crop` (height, width) pixels.

    Args:
        channels: those that an image may have, the likeliest first.

    Raises:
        ArchitectureError: it takes no such image, or gives something else than one row of numbers an image.
    """
    module.eval()
    failed: Exception | None = None
    for count in channels:
        try:
            with torch.inference_mode():
                outputs = module(torch.zeros(_BATCH, count, *crop))
        except Exception as error:  # the user's code may raise anything
            failed = failed or error
            continue
        return _probed(module, outputs, name, count)
    words = quoted(f"{type(failed).__name__}: {failed}", 300)
    raise ArchitectureError(
        f"{name} fails on an image of {crop[1]}x{crop[0]} pixels: {words}; if it needs another size, "
        "state it in model.yaml, such as `preprocessing: {resize: 256, crop: 224}`"
    ) from failed


class Probed:
    """A module that gives a tensor (n, outputs) for images of `channels` channels."""

    def __init__(self, module: nn.Module, outputs: int, channels: int) -> None:
        self.module, self.outputs, self.channels = module, outputs, channels


def _probed(module: nn.Module, outputs: Any, name: str, channels: int) -> Probed:
    fields = _fields(outputs)
    if "logits" in fields:
        module, outputs = Logits(module), fields["logits"]
    if isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == _BATCH and outputs.shape[1]:
        return Probed(module, outputs.shape[1], channels)
    raise ArchitectureError(
        f"{name} gives {_words(outputs)}, but pthserve needs a tensor (batch, classes), by itself or as "
        "`logits` of a mapping: name a callable whose module returns one"
    )


def _fields(outputs: Any) -> Mapping[str, Any]:
    """What a mapping or a dataclass has, by name."""
    if isinstance(outputs, Mapping):
        return outputs
    return vars(outputs) if hasattr(outputs, "__dict__") and not isinstance(outputs, Tensor) else {}


def _words(outputs: Any) -> str:
    """What `outputs` is, and for what models give such."""
    if isinstance(outputs, Tensor):
        return f"a tensor of the shape {tuple(outputs.shape)} for {_BATCH} images"
    fields = _fields(outputs[0] if isinstance(outputs, list | tuple) and outputs else outputs)
    kind = next((f", as models for {_KINDS[key]} do" for key in fields if key in _KINDS), "")
    what = f"a {type(outputs).__name__}"
    if isinstance(outputs, list | tuple):
        what += f" of {len(outputs)}"
    return what + (f" with {some(map(str, fields))}" if fields else "") + kind
