"""The index of timm's classifiers: what each is recognised by, and which of them compute the same.

Names that share all keys and shapes are run with the same weights on the same image. Those that answer alike
are one group.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import astuple, is_dataclass
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import PretrainedCfg
from torch import Tensor, nn

from pthserve.zoos.base import shapes
from pthserve.zoos.catalogue import Catalogue, Entry, describe
from pthserve.zoos.layout import Layout, Part, sized, square
from pthserve.zoos.timm import INDEX, TIMM, Law, preset
from pthserve.zoos.torchvision import TORCHVISION

_log = logging.getLogger(__name__)

_CLASSES = 32
_LARGEST = 750_000_000
"""Most parameters of a module that is run; a larger one is a group of its own."""
_ALIKE = 1e-4
"""Largest difference between two answers that count as the same, as a share of the largest number in them."""
_LIVELY = 1e-3
"""Smallest difference between the answers for two images, on the same scale, for a run to show anything."""
_INTERNAL = frozenset(vars(nn.Module())) | {
    "pretrained_cfg",
    "default_cfg",
    "pretrained_model_args",
    "grad_checkpointing",
}
"""Attributes of a module that say nothing of what it computes."""
_NUMBERS = torch.randn(2**22, generator=torch.Generator().manual_seed(1))


def write() -> None:
    """Write `timm.json`, which takes some 20 minutes and 6 GiB of memory."""
    found: dict[str, tuple[Entry, Law | None]] = {}
    for name in timm.list_models():
        if one := described(name):
            found[name] = one
    _save(found, *_groups({name: entry for name, (entry, _) in found.items()}, _laws(found)))


def described(name: str) -> tuple[Entry, Law | None] | None:
    """The entry of the architecture, and how it follows the image's size; None if it is no classifier."""
    cfg = _cfg(name)
    try:
        module = TIMM.blank(name, num_classes=1000)
        last, *beside = [cfg.classifier] if isinstance(cfg.classifier, str) else list(cfg.classifier or [])
        beside += _others_of_classes(name, module, {last, *beside})
        layers = [module.get_submodule(path) for path in (last, *beside)]
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        _log.info("%s: left out: %s", name, error)
        return None
    if any(getattr(layer, "weight", torch.zeros(0, 0)).shape[0] != 1000 for layer in layers):
        _log.info("%s: left out: %s does not give the classes", name, last)
        return None
    if not dict(_tags(name)):
        _log.info("%s: left out: no spec does what its preprocessing does", name)
        return None
    entry = describe(module, last, beside=tuple(beside), first=_first(cfg.first_conv))
    return entry, _law(name, module, entry, cfg.input_size[-1])


def _others_of_classes(name: str, module: nn.Module, known: Set[str]) -> list[str]:
    """Paths of the layers that give the classes and are not `known`: a few `pretrained_cfg` leave one out."""
    other = shapes(TIMM.blank(name, num_classes=_CLASSES).state_dict())
    changed = (
        path
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and other[f"{path}.weight"] != tuple(layer.weight.shape)
    )
    return [path for path in changed if path not in known]


def _cfg(name: str) -> PretrainedCfg:
    """That of the architecture's default weights."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    return cfg


def _first(names: str | Sequence[str] | None) -> str:
    return f"{names if isinstance(names, str) else (names or [''])[0]}.weight"


def _law(name: str, module: nn.Module, entry: Entry, size: int) -> Law | None:
    """How the first of the tensors that follow the size of the image, or of its windows, does so."""
    body = _body(module, entry)
    for argument, default, values in (
        ("img_size", size, (size + 64, size + 56, 2 * size)),
        ("window_size", _window(module), (8, 14)),
    ):
        for value in values if default else ():
            try:
                other = _body(TIMM.blank(name, num_classes=1000, **{argument: value}), entry)
            except (AssertionError, RuntimeError, TypeError, ValueError):
                continue
            changed = [
                (short, axis, shape[axis], other.shapes[short][axis])
                for short, shape in body.shapes.items()
                if sized(short, shape) and short in other.shapes
                for axis in range(len(shape))
                if shape[axis] != other.shapes[short][axis]
            ]
            if changed and (law := _fitting(argument, *changed[0], default, value)):
                return law
    return None


def _window(module: nn.Module) -> int:
    """The side of the first window that a table of relative positions is for; 0 where there is none."""
    for name, shape in shapes(module.state_dict()).items():
        if name.endswith("relative_position_bias_table") and len(shape) == 2 and square(shape[0]):
            return (square(shape[0]) or 0) // 2 + 1
    return 0


def _fitting(
    argument: str, short: str, axis: int, dimension: int, changed: int, default: int, value: int
) -> Law | None:
    # Beside the patches there may be tokens, and a few distances that are none between patches.
    for kind, extras in (("count", 6), ("table", 4), ("side", 1), ("edge", 1)):
        for extra, step in itertools.product(range(extras), range(1, default + 1)):
            law = Law(argument, short, axis, kind, step, extra, default)
            whole = default % step == value % step == 0
            if whole and law.dimension(default) == dimension and law.dimension(value) == changed:
                return law
    return None


def _body(module: nn.Module, entry: Entry) -> Part:
    return Layout(shapes(module.state_dict())).part((), {top: top for top in entry.tops})


def _laws(found: Mapping[str, tuple[Entry, Law | None]]) -> dict[str, Law]:
    return {name: law for name, (_, law) in found.items() if law}


def _groups(entries: Mapping[str, Entry], laws: Mapping[str, Law]) -> tuple[dict[str, int], dict[str, int]]:
    """The number of each name's group, where others share its digest: of timm's, and of torchvision's."""
    sharing: dict[str, list[tuple[Catalogue, str]]] = defaultdict(list)
    for name, entry in entries.items():
        sharing[entry.digest].append((TIMM, name))
    for name, entry in TORCHVISION.index().items():
        if entry.digest in sharing:
            sharing[entry.digest].append((TORCHVISION, name))
    groups: dict[str, dict[str, int]] = {"timm": {}, "torchvision": {}}
    number = 0
    for members in sharing.values():
        if len(members) > 1:
            for alike in _computing_alike(members, entries, laws):
                number += 1
                for catalogue, name in alike:
                    groups[catalogue.name][name] = number
                _log.info("group %d: %s", number, ", ".join(name for _, name in alike))
    return groups["timm"], groups["torchvision"]


def _computing_alike(
    members: Sequence[tuple[Catalogue, str]], entries: Mapping[str, Entry], laws: Mapping[str, Law]
) -> list[list[tuple[Catalogue, str]]]:
    """The members, those together that compute the same: their modules are the same, or answer the same."""
    size = min(_input_size(catalogue, name) for catalogue, name in members)
    alike: list[tuple[set[str], Tensor | None, list[tuple[Catalogue, str]]]] = []
    for member in members:
        catalogue, name = member
        module = _built(catalogue, name, laws.get(name), size)
        structure = (_structure(module) if module else None) or ""
        group = next((group for group in alike if structure in group[0]), None)
        if group is None:
            entry = entries[name] if catalogue is TIMM else TORCHVISION.index()[name]
            answer = _answer(module, name, entry, size) if module else None
            far = [
                1.0 if answer is None or other is None else _difference(answer, other)
                for _, other, _ in alike
            ]
            _log.info("%s/%s: %s", catalogue.name, name, [f"{one:.1e}" for one in far])
            group = next((group for group, one in zip(alike, far, strict=True) if one < _ALIKE), None)
            if group is None:
                alike.append(group := (set(), answer, []))
            if structure:
                group[0].add(structure)
        group[2].append(member)
    return [group[2] for group in alike]


def _input_size(catalogue: Catalogue, name: str) -> int:
    if catalogue is TIMM:
        return int(_cfg(name).input_size[-1])
    return catalogue.spec(name).crop[0]


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return 1.0
    return float((one - other).abs().max() / other.abs().max())


def _built(catalogue: Catalogue, name: str, law: Law | None, size: int) -> nn.Module | None:
    """The architecture for images of `size`, as far as it can be; None where it cannot be built so."""
    arguments: dict[str, Any] = {"num_classes": _CLASSES}
    if catalogue is TIMM:
        if _cfg(name).fixed_input_size or (law and law.argument == "img_size"):
            arguments["img_size"] = size
        if law and law.argument == "window_size":
            arguments["window_size"] = law.default * size // _input_size(TIMM, name)
    try:
        return catalogue.blank(name, **arguments).eval()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        _log.info("%s: not built: %s", name, " ".join(str(error).split())[:200])
        return None


def _structure(module: nn.Module) -> str | None:
    """A text that is equal for modules that compute the same; None where an attribute is of an unknown kind.

    It has the classes of all layers, and their attributes but for those that only training looks at.
    """
    lines = []
    for path, layer in module.named_modules():
        lines.append(f"{path}: {type(layer).__module__}.{type(layer).__qualname__}")
        for key, value in vars(layer).items():
            if key in _INTERNAL or "drop" in key or (key == "p" and isinstance(layer, nn.Dropout)):
                continue
            words = _words(value)
            if words is None:
                return None
            lines.append(f"{key}={words}")
    lines += [f"{name}={_words(buffer)}" for name, buffer in module.named_buffers()]
    return "\n".join(lines)


def _words(value: Any) -> str | None:
    """The value as text, equal only for equal ones; None where it is of an unknown kind."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, Tensor):
        return "meta" if value.is_meta else hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()
    if isinstance(value, functools.partial):
        value = (value.func, value.args, value.keywords)
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        words = [_words(one) for one in value]
        return None if None in words else f"[{', '.join(map(str, words))}]"
    if isinstance(value, nn.Module):
        return type(value).__qualname__  # its attributes stand under its own path
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return None


def _answer(module: nn.Module, name: str, entry: Entry, size: int) -> Tensor | None:
    """What the module answers for images of `size`, with weights that follow from its tensors' names.

    None where it cannot be run, or where its answers hardly depend on the image.
    """
    if sum(parameter.numel() for parameter in module.parameters()) > _LARGEST:
        _log.info("%s: too large", name)
        return None
    body = {full: short for short, full in _body(module, entry).names.items()}
    try:
        trained = {key for key, _ in module.named_parameters(remove_duplicate=False)}
        values = {
            key: _filled(body.get(key, key.replace(entry.last, "last")), tensor)
            if key in trained or "running" in key
            else tensor
            for key, tensor in module.state_dict().items()
        }
        module.load_state_dict(values, assign=True)
        generator = torch.Generator().manual_seed(2)
        images = nn.functional.interpolate(torch.randn(2, 3, 6, 6, generator=generator), (size, size))
        images = images + torch.randn(images.shape, generator=generator) / 2
        with torch.no_grad():
            answer: Tensor = module(images)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        _log.info("%s: not run: %s", name, " ".join(str(error).split())[:200])
        return None
    one, other = answer
    if not answer.isfinite().all() or _difference(one, other) < _LIVELY:
        _log.info("%s: its answers show nothing", name)
        return None
    return answer


def _filled(name: str, tensor: Tensor) -> Tensor:
    """The tensor with numbers that follow from its name and shape, such as a trained one might have."""
    leaf = name.rpartition(".")[2]
    count, start = tensor.numel(), zlib.crc32(name.encode()) % (len(_NUMBERS) // 2)
    rest = _NUMBERS[start:]
    numbers = rest.repeat(-(-count // len(rest)))[:count].reshape(tensor.shape)
    if leaf == "running_var":
        return numbers.abs() + 0.5
    if tensor.ndim > 1 and not sized(name, tuple(tensor.shape)):
        return numbers / math.sqrt(max(count / tensor.shape[0], 1))
    if leaf == "weight" or "gamma" in leaf:
        return numbers.abs() + 0.5
    return numbers * 0.3


def _save(
    found: Mapping[str, tuple[Entry, Law | None]], groups: Mapping[str, int], torchvision: Mapping[str, int]
) -> None:
    presets: list[dict[str, Any]] = []
    tops: list[dict[str, int | None]] = []
    bodies: list[list[Any]] = []
    names: dict[str, list[Any]] = {}
    for name, (entry, law) in found.items():
        body = [_place(tops, entry.tops), entry.count, entry.digest, entry.sketch]
        names[name] = [
            _place(bodies, body),
            entry.last,
            entry.first,
            entry.sizes,
            entry.head_digest,
            list(entry.beside),
            groups.get(name, 0),
            astuple(law) if law else None,
            {tag: _place(presets, values) for tag, values in _tags(name)},
        ]
    lines = [
        f'"timm": {json.dumps(timm.__version__)}',
        f'"torchvision": {_json(torchvision)}',
        f'"presets": [\n{_lines(presets)}\n]',
        f'"tops": [\n{_lines(tops)}\n]',
        f'"bodies": [\n{_lines(bodies)}\n]',
        '"names": {\n' + ",\n".join(f"{_json(name)}:{_json(rest)}" for name, rest in names.items()) + "\n}",
    ]
    INDEX.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _tags(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each tag of the architecture's pretrained weights, its default first, and their preprocessing."""
    from timm.models._registry import get_arch_pretrained_cfgs

    default = _cfg(name)
    others = {full.partition(".")[2]: cfg for full, cfg in get_arch_pretrained_cfgs(name).items()}
    for tag, cfg in {default.tag or "": default, **others}.items():
        with contextlib.suppress(ValueError):
            yield tag, _followed(cfg)


def _followed(cfg: PretrainedCfg) -> dict[str, Any]:
    """Its preprocessing; raises ValueError where no spec does the same."""
    values: dict[str, Any] = resolve_data_config(pretrained_cfg=cfg.to_dict())  # type: ignore[no-untyped-call]
    preset(**values)
    return values


def _place(values: list[Any], value: Any) -> int:
    if value not in values:
        values.append(value)
    return values.index(value)


def _lines(values: Sequence[Any]) -> str:
    return ",\n".join(map(_json, values))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write()
