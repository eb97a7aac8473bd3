"""Checkpoint: find the state dict in the file that a training script saved."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from pthserve.errors import WeightsError
from pthserve.files import inert, metadata, tensors
from pthserve.text import quoted

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module")
"""Keys under which training scripts save the state dict, the most reliable first."""
AVERAGED = re.compile(r"(^|[._])ema([._]|$)")
"""Matches the key of an exponential moving average. If there are several state dicts, this is the one that
its author evaluates; timm's `load_state_dict` chooses the same."""

TENSORS = 10_000
"""Maximum number of tensors in a state dict; the largest one of torchvision has 1,548."""
NODES = 60_000
"""Maximum number of dot-separated parts of all names together."""
NAME = 1000
"""Maximum number of characters of a tensor's name."""
PARTS = 32
"""Maximum number of dot-separated parts of a tensor's name."""
VISITS = 2_000_000
"""Maximum number of values that are visited in search of a state dict."""

_DEPTH = 4
_PLAIN = re.compile(r"torch\.(float(16|32|64|8_\w+)|bfloat16|u?int(8|16|32|64)|bool)")
"""The types that PyTorch converts to float32 on a CPU; others have values smaller than a byte."""
_QUANTISED = re.compile(
    r"(^|\.)(_packed_params|qweight|qzeros|SCB|quant_state|quant_map|weight_format)(\.|$)"
)
"""Names in the state dicts of torch.ao.quantization, GPTQ and bitsandbytes."""
_ADAPTER = re.compile(r"(^|\.)lora_(A|B|down|up|embedding_[AB])(\.|$)")
EXPORT = 'torch.export.save(torch.export.export(model.eval(), (example,)), "model.pt2")'
"""The call that exports any model, so that its class is not needed; `example` is a batch of images."""


@dataclass(frozen=True, slots=True)
class Found:
    """The state dict in a checkpoint.

    Attributes:
        container: Its key, dotted if nested; "" if the whole file is the state dict.
        tensors: The tensors by name.
        others: The containers of the other state dicts.
        ids: The `id` of each state dict.
    """

    container: str
    tensors: Mapping[str, Any]
    others: tuple[str, ...]
    ids: frozenset[int]


def unwrap(root: Any, name: str, container: str | None = None) -> Found:
    """Return the state dict in `root`, an inert value or a dict of tensors.

    Args:
        name: The name of the file, for the command in an error message that saves a part of it.
        container: The key of the state dict; None to find it.

    Raises:
        WeightsError: There is none, none can be chosen, or it is of a kind that is not supported.
    """
    search = _Search()
    search.visit(root, "", 0)
    found = search.found
    if not found:
        raise WeightsError(_nothing(root, name))
    chosen = _choose(found, name) if container is None else container
    if chosen not in found:
        raise WeightsError(f"has no state dict under {quoted(chosen)}; it has {some(_shown(found))}")
    _refuse_special(search.names[chosen], found[chosen])
    others = tuple(key for key in found if key != chosen)
    return Found(chosen, found[chosen], others, frozenset(search.ids))


def _shown(found: Iterable[str]) -> list[str]:
    return [key or "the whole file" for key in found]


def _choose(found: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Return the key of the state dict that its author would serve."""
    if len(found) == 1:
        return next(iter(found))
    named = [key for wrapper in WRAPPERS for key in found if key.split(".")[-1] == wrapper]
    # A moving average without the buffers could not be loaded.
    complete = max((len(found[key]) for key in named), default=0)
    averaged = [key for key in found if AVERAGED.search(key) and len(found[key]) >= complete]
    chosen = next(iter(averaged + named), None)
    if chosen is None:
        first = next(iter(found))
        raise WeightsError(
            f"holds several state dicts ({some(found)}), none of which has a common name; name the one to "
            "serve in "
            f"model.yaml, such as `container: {quoted(first)}`, or save it on its own: "
            f"{resave(name, 'LOADED' + _subscripts(first), weights_only=True)}"
        )
    return chosen


class _Search:
    """Finds every mapping with dotted keys and a tensor of two or more dimensions."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self.names: dict[str, list[str]] = {}
        self.ids: set[int] = set()
        self._left = VISITS
        self._seen: set[int] = set()

    def visit(self, value: Any, key: str, depth: int) -> None:
        pairs = metadata.mapping(value)
        if pairs is None or depth > _DEPTH or id(value) in self._seen:
            return
        self._seen.add(id(value))
        within: dict[str, Any] = {}
        names, inner = [], []
        for name, held in pairs:
            self._left -= 1
            if self._left < 0:
                raise WeightsError(f"holds more than {VISITS} values; save the state dict alone")
            if isinstance(name, str):
                names.append(name)
                tensor = held if hasattr(held, "ndim") else tensors.stored(held)
                if tensor is not None:
                    within[name] = tensor
                elif isinstance(held, dict | inert.Object):
                    inner.append((name, held))
        if any("." in name and tensor.ndim > 1 for name, tensor in within.items()):
            self.found[key], self.names[key] = within, names
            self.ids.add(id(value))
            return
        for name, held in inner:
            self.visit(held, f"{key}.{name}".lstrip("."), depth + 1)


def _refuse_special(names: Iterable[str], found: Mapping[str, Any]) -> None:
    """Raise WeightsError for the state dict of a quantised model or an adapter."""
    quantised = next((name for name in names if _QUANTISED.search(name)), None) or next(
        (name for name, tensor in found.items() if getattr(tensor, "oddity", "") == "quantised"), None
    )
    if quantised:
        raise WeightsError(
            f"{quoted(quantised)} is quantised; serve the floating-point model that it was made from: "
            "`--precision int8` quantises it here"
        )
    if adapter := next((name for name in names if _ADAPTER.search(name)), None):
        raise WeightsError(
            f"is a LoRA adapter, which changes another model ({quoted(adapter)}); merge it into that model "
            'and save the result: `model.merge_and_unload().save_pretrained("merged")`'
        )


# --- files without a state dict


def _nothing(root: Any, name: str) -> str:
    """Return the message for a file without a state dict: what it contains, and what to do."""
    pairs = metadata.mapping(root)
    held = {key: value for key, value in islice(pairs or (), TENSORS) if isinstance(key, str)}
    if module := _module(root):
        owner = metadata.class_of(root) if isinstance(root, inert.Object) else ""
        return _whole_module(*module, name, owner)
    if {"state", "param_groups"} <= held.keys():
        return (
            "is the state of an optimizer, without weights; name the file with the model's, or save "
            "`model.state_dict()` with torch.save"
        )
    if any(metadata.is_array(value) for value in held.values()):
        part = "{k: torch.as_tensor(v) for k, v in LOADED.items() if hasattr(v, 'shape')}"
        return (
            "holds numpy arrays and not tensors. If you trust the file, save tensors where it was made: "
            f"{resave(name, part)}"
        )
    if pairs is not None:
        what = f"keys are {some(held)}"
    elif tensors.stored(root):
        what = "content is a torch.Tensor"
    elif isinstance(root, inert.Object):
        what = f"content is an object of `{quoted(metadata.class_of(root))}`, which was not made"
    else:
        what = f"content is a {type(root).__name__}"
    return f"contains no state dict; its {what}. Save `model.state_dict()` with torch.save"


def _module(root: Any) -> tuple[inert.Object, str] | None:
    """Return the module in a checkpoint that its author would serve, and the Python expression for it."""
    level: list[tuple[Any, str, int]] = [(root, "", 0)]
    left = VISITS // 100
    for _ in range(_DEPTH):
        if modules := [one for one in level if metadata.is_module(one[0])]:
            module, part, _ = min(modules, key=lambda one: one[2])
            return module, part
        inner = []
        for value, part, _ in level:
            pairs = metadata.mapping(value)
            is_dict = pairs is not None
            for key, held in islice(pairs if pairs is not None else metadata.attributes(value).items(), left):
                left -= 1
                if isinstance(key, str) and isinstance(held, dict | inert.Object):
                    step = f"[{json.dumps(key)}]" if is_dict else f".{key}"
                    if is_dict or key.isidentifier():
                        inner.append((held, part + step, _rank(key)))
        level = inner
    return None


def _rank(key: str) -> int:
    """Return a rank of how likely the value under `key` is the one to serve; 0 is the most likely."""
    if AVERAGED.search(key):
        return 0
    return 1 + (WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS))


def _whole_module(module: inert.Object, part: str, name: str, owner: str) -> str:
    """Return the message for a file with a module; `owner` is the class of the whole content."""
    kind = metadata.class_of(module)
    where = f" under `{quoted(part)}`" if part else ""
    if kind.startswith("ultralytics."):
        return (
            f"is a whole model of Ultralytics (`{quoted(kind)}`{where}), and to rebuild it would run code, "
            f"so nothing was loaded. Export it by `yolo export model={shlex.quote(name)} format=onnx`, and "
            "serve the .onnx file"
        )
    if owner.startswith("fastai."):
        return _learner(owner, name)
    line = resave(name, f"LOADED{part}.state_dict()")
    return (
        f"holds a whole module (`{quoted(kind)}`{where}), and to rebuild it would run code, so nothing was "
        f"loaded. Export it where it was made: `{EXPORT}`. Or, if you trust the file and its architecture is "
        f"one of torchvision, timm or transformers, save its weights where it was made: {line}"
    )


def _learner(kind: str, name: str) -> str:
    """Return the message for a Learner of fastai."""
    held = '{"state_dict": learn.model.state_dict(), "classes": list(learn.dls.vocab)}'
    code = (
        "import torch; from fastai.learner import load_learner; "
        f"learn = load_learner({json.dumps(name)}); torch.save({held}, {_beside(name)})"
    )
    return (
        f"is a Learner of fastai (`{quoted(kind)}`), as `learn.export` writes it; to rebuild it would run "
        "code, so nothing was loaded. If you trust the file, save its weights and classes where it was made: "
        f"python -c {shlex.quote(code)}. Or export the model there: "
        f"`{EXPORT.replace('model.eval()', 'learn.model.eval()')}`"
    )


def plain_pickle(root: Any, name: str) -> str:
    """Return the message for a pickle that `torch.save` did not write."""
    kind = f" (an object of `{quoted(metadata.class_of(root))}`)" if isinstance(root, inert.Object) else ""
    pairs = metadata.mapping(root)
    held = {key: value for key, value in islice(pairs or (), TENSORS) if isinstance(key, str)}
    within = next((key for key in WRAPPERS if isinstance(held.get(key), dict | inert.Object)), None)
    part = "LOADED" + (_subscripts(within) if within else "")
    if metadata.is_module(root):
        part = "LOADED.state_dict()"
    else:
        part = f"{{k: torch.as_tensor(v) for k, v in {part}.items() if hasattr(v, 'shape')}}"
    loader = f'pickle.load(open({json.dumps(name)}, "rb"))'
    return (
        f"is a pickle{kind} that torch.save did not write, and to load it could run code, so nothing was "
        "loaded. If you trust the file, save its weights where it was made: "
        f"{resave(name, part, loader=loader)}"
    )


def _subscripts(container: str) -> str:
    return "".join(f"[{json.dumps(part)}]" for part in container.split(".")) if container else ""


def resave(name: str, part: str, *, weights_only: bool = False, loader: str = "") -> str:
    """Return a shell command that saves a part of the file `name` in a new file beside it.

    Args:
        part: A Python expression in which `LOADED` stands for the content of the file.
        weights_only: Passed to `torch.load`; without it, the code in the file is run.
        loader: A Python expression that loads the file; default: `torch.load`.
    """
    loader = loader or f'torch.load({json.dumps(name)}, map_location="cpu", weights_only={weights_only})'
    code = f"import pickle, torch; torch.save({part.replace('LOADED', loader)}, {_beside(name)})"
    return f"python -c {shlex.quote(code)}"


def _beside(name: str) -> str:
    """Return a Python expression for the name of a new weights file beside the file `name`."""
    return json.dumps(f"{name.rpartition('.')[0] or name}-weights.pth")


# --- limits of a state dict


def check_names(names: Iterable[str]) -> None:
    """Raise WeightsError if there are too many tensors, or if their names are too long."""
    names = list(names)
    if len(names) > TENSORS:
        raise WeightsError(f"holds {len(names)} tensors; the limit is {TENSORS}")
    if odd_name := next((n for n in names if len(n) > NAME or n.count(".") >= PARTS), None):
        raise WeightsError(
            f"holds a tensor whose name has {len(odd_name)} characters in {odd_name.count('.') + 1} parts: "
            f"{quoted(odd_name)}; the limits are {NAME} and {PARTS}"
        )
    if (parts := sum(name.count(".") + 1 for name in names)) > NODES:
        deepest = max(names, key=lambda name: name.count("."))
        raise WeightsError(
            f"holds tensors whose names have {parts} parts in all, such as {quoted(deepest)}; the "
            f"limit is {NODES}"
        )


def check_values(state_dict: "Mapping[str, Tensor]") -> None:
    """Raise WeightsError unless every tensor has a supported type and only finite values."""
    for name, tensor in state_dict.items():
        if tensor.is_complex():
            raise WeightsError(f"{quoted(name)} is complex; {_PLAIN_MODEL}")
        if not _PLAIN.fullmatch(str(tensor.dtype)):
            raise WeightsError(
                f"{quoted(name)} is of type {str(tensor.dtype).partition('.')[2]}; {_PLAIN_MODEL}"
            )
    if bad := [name for name, tensor in state_dict.items() if not _finite(tensor)]:
        raise WeightsError(
            f"{some(bad)} contains NaN or infinity, so the training probably diverged; use an earlier "
            "checkpoint"
        )


_PLAIN_MODEL = "save the state dict of a plain floating-point model"


def _finite(tensor: "Tensor") -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    values = tensor if tensor.itemsize > 1 else tensor.float()
    if values.numel() == 1:
        return not bool(values.isnan())  # a single infinite number is a bound, as in timm's gemma4_vit
    least, most = values.aminmax()
    return bool(least.isfinite() and most.isfinite())


def some(names: Iterable[str], count: int = 4) -> str:
    """Return the first few of `names` as text."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return (", ".join(map(quoted, names[:count])) or "none") + more
