"""Checkpoint: what a training script saved, and the state dict in it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pthserve.errors import WeightsError
from pthserve.model import pickles

if TYPE_CHECKING:
    from torch import Tensor

AVERAGED = re.compile(r"(^|[._])ema([._]|$)")
"""In the name of a moving average. Of several state dicts it is the one that its author evaluates; timm's
`load_state_dict` chooses the same."""

_DEPTH = 4


def unwrap(root: Any, name: str) -> "tuple[str, dict[str, Tensor]]":
    """The state dict in `root`, after the key under which it lay (dotted where nested, "" for `root` itself).

    name: of the file, for the line that saves one of several. Raises WeightsError where none can be chosen.
    """
    found = dict(_state_dicts(root, "", 0, set()))
    if not found:
        held = (
            f"keys are {some(map(str, root))}" if isinstance(root, Mapping) else f"content is a {_type(root)}"
        )
        raise WeightsError(f"has no state dict in it; its {held}. Save `model.state_dict()` with torch.save")
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
            f"holds several state dicts ({some(found)}) and none by a usual name. "
            f"Save the one to serve on its own: {pickles.resave(name, part)}"
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
    storages: dict[int, int] = {}
    for name, tensor in state_dict.items():
        if odd := _oddity(tensor):
            raise WeightsError(f"{name} is {odd}; save the state dict of a plain floating-point model")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.nbytes > storage.nbytes():
            raise WeightsError(f"{name} claims more values than the file holds; save or download it again")
    if sum(storages.values()) > size:
        raise WeightsError("the tensors claim more values than the file holds; save or download it again")
    if bad := [name for name, tensor in state_dict.items() if not _finite(tensor)]:
        raise WeightsError(
            f"NaN or infinity in {some(bad)}; the training diverged, so take an earlier checkpoint"
        )


def _oddity(tensor: "Tensor") -> str | None:
    import torch

    if tensor.device.type != "cpu":
        return f"on the {tensor.device.type} device, without values"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    return "complex" if tensor.is_complex() else None


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
    return (", ".join(names[:count]) or "none") + more
