"""Checkpoint: what a training script saved, and the state dict in it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pthserve.errors import WeightsError
from pthserve.files import pickles
from pthserve.text import quoted

if TYPE_CHECKING:
    from torch import Tensor

AVERAGED = re.compile(r"(^|[._])ema([._]|$)")
"""In the name of a moving average. Of several state dicts it is the one that its author evaluates; timm's
`load_state_dict` chooses the same."""

TENSORS = 10_000
"""Most tensors of a state dict; the largest of torchvision's has 1,548."""
NODES = 60_000
"""Most parts of all names together."""
NAME = 1000
"""Most characters of a tensor's name."""
PARTS = 32
"""Most parts of a tensor's name, with dots between them."""

_DEPTH = 4
_PLAIN = re.compile(r"torch\.(float(16|32|64|8_\w+)|bfloat16|u?int(8|16|32|64)|bool)")
"""The types that PyTorch converts to float32 on a CPU; it has others that hold parts of a byte."""


def unwrap(root: Any, name: str) -> "tuple[str, dict[str, Tensor]]":
    """The state dict in `root`, after the key under which it lay (dotted where nested, "" for `root` itself).

    name: of the file, for the line that saves one of several. Raises WeightsError where none can be chosen.
    """
    found = dict(_state_dicts(root, "", 0, set()))
    if not found:
        held = (
            f"keys are {some(map(str, root))}" if isinstance(root, Mapping) else f"content is a {_type(root)}"
        )
        raise WeightsError(f"contains no state dict; its {held}. Save `model.state_dict()` with torch.save")
    if len(found) == 1:
        return next(iter(found.items()))
    named = [key for wrapper in pickles.WRAPPERS for key in found if key.split(".")[-1] == wrapper]
    # An average of the parameters alone lacks the buffers, and could not be loaded.
    complete = max((len(found[key]) for key in named), default=0)
    averaged = [key for key in found if AVERAGED.search(key) and len(found[key]) >= complete]
    chosen = next(iter(averaged + named), None)
    if chosen is None:
        part = "LOADED" + "".join(f'["{part}"]' for part in next(iter(found)).split("."))
        raise WeightsError(
            f"holds several state dicts ({some(found)}), none of which has a common name. "
            f"Save the one to serve in its own file: {pickles.resave(name, part)}"
        )
    return chosen, found[chosen]


def _state_dicts(
    value: Any, key: str, depth: int, seen: set[int]
) -> "Iterator[tuple[str, dict[str, Tensor]]]":
    """Every mapping that names, under dotted keys, tensors of two or more dimensions."""
    from torch import Tensor

    if not isinstance(value, Mapping) or depth > _DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    tensors = {
        name: tensor.detach()
        for name, tensor in value.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    if any("." in name and tensor.ndim > 1 for name, tensor in tensors.items()):
        yield key, tensors
        return
    for name, inner in value.items():
        if isinstance(name, str):
            yield from _state_dicts(inner, f"{key}.{name}".lstrip("."), depth + 1, seen)


def check(state_dict: "dict[str, Tensor]", size: int) -> None:
    """Raise WeightsError unless every tensor is plain and finite, and all fit into a file of `size` bytes."""
    if len(state_dict) > TENSORS:
        raise WeightsError(f"holds {len(state_dict)} tensors; the limit is {TENSORS}")
    if odd_name := next((n for n in state_dict if len(n) > NAME or n.count(".") >= PARTS), None):
        raise WeightsError(
            f"holds a tensor whose name has {len(odd_name)} characters in {odd_name.count('.') + 1} parts: "
            f"{quoted(odd_name)}; the limits are {NAME} and {PARTS}"
        )
    if (parts := sum(name.count(".") + 1 for name in state_dict)) > NODES:
        deepest = max(state_dict, key=lambda name: name.count("."))
        raise WeightsError(
            f"holds tensors whose names have {parts} parts in all, such as {quoted(deepest)}; the "
            f"limit is {NODES}"
        )
    storages: dict[int, int] = {}
    for name, tensor in state_dict.items():
        if odd := _oddity(tensor):
            raise WeightsError(
                f"{quoted(name)} is {odd}; save the state dict of a plain floating-point model"
            )
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.nbytes > storage.nbytes():
            raise WeightsError(
                f"{quoted(name)} declares more values than the file contains; save or download it again"
            )
    if sum(storages.values()) > size:
        raise WeightsError(
            "the tensors declare more values than the file contains; save or download it again"
        )
    if bad := [name for name, tensor in state_dict.items() if not _finite(tensor)]:
        raise WeightsError(
            f"{some(bad)} contains NaN or infinity, so the training probably diverged; use an earlier "
            "checkpoint"
        )


def _oddity(tensor: "Tensor") -> str | None:
    import torch

    if tensor.device.type != "cpu":
        return f"on the {tensor.device.type} device, without values"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_complex():
        return "complex"
    return None if _PLAIN.fullmatch(str(tensor.dtype)) else f"of type {str(tensor.dtype).partition('.')[2]}"


def _finite(tensor: "Tensor") -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    least, most = (tensor if tensor.itemsize > 1 else tensor.float()).aminmax()
    return bool(least.isfinite() and most.isfinite())


def _type(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def some(names: Iterable[str], count: int = 4) -> str:
    """The first few of `names`, in words."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return (", ".join(map(quoted, names[:count])) or "none") + more
