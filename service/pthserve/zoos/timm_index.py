"""The index of timm's classifiers: what each is recognised by, and which of them compute the same.

Names that share all keys and shapes are run with the same weights on the same image. Those that answer alike
are one group.
"""

import itertools
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from pthserve.zoos.base import shapes
from pthserve.zoos.catalogue import Catalogue, Entry, describe, head_digest
from pthserve.zoos.layout import Layout, Part, Shape, sized, square
from pthserve.zoos.timm import INDEX, TIMM, Law
from pthserve.zoos.torchvision import TORCHVISION

_CLASSES = 32
_LARGEST = 750_000_000
"""Most parameters of a module that is run; a larger one is a group of its own."""
_ALIKE = 1e-4
"""Largest difference between two answers that count as the same, as a share of the largest number in them."""
_LIVELY = 1e-2
"""Smallest difference between the answers for two images, on the same scale, for a run to show anything."""
_NUMBERS = torch.randn(2**22, generator=torch.Generator().manual_seed(1))


def write() -> None:
    """Write `timm.json`, which takes some 20 minutes and 6 GiB of memory."""
    found: dict[str, tuple[Entry, Law | None]] = {}
    for name in timm.list_models():
        if one := _described(name):
            found[name] = one
    _save(found, *_groups({name: entry for name, (entry, _) in found.items()}, _laws(found)))


def _described(name: str) -> tuple[Entry, Law | None] | None:
    """The entry of the architecture, and how it follows the size of the image; None if it is no classifier."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    try:
        module = TIMM.blank(name, num_classes=1000)
        last, *beside = [cfg.classifier] if isinstance(cfg.classifier, str) else list(cfg.classifier or [])
        layers = [module.get_submodule(path) for path in (last, *beside)]
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        print(f"{name}: left out: {error}")
        return None
    if any(getattr(layer, "weight", torch.zeros(0, 0)).shape[0] != 1000 for layer in layers):
        print(f"{name}: left out: {last} does not give the classes")
        return None
    entry = describe(module, last, beside=tuple(beside), first=_first(cfg.first_conv))
    return entry, _law(name, module, entry, cfg.input_size[-1])


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


def _groups(
    entries: Mapping[str, Entry], laws: Mapping[str, Law]
) -> tuple[dict[str, int], dict[str, int]]:
    """The number of each name's group, where others share its digest: of timm's, and of torchvision's."""
    sharing: dict[str, list[tuple[Catalogue, str]]] = defaultdict(list)
    for name, entry in entries.items():
        sharing[entry.digest].append((TIMM, name))
    for name, entry in TORCHVISION.index().items():
        if entry.digest in sharing:
            sharing[entry.digest].append((TORCHVISION, name))
    number, groups = 0, {"timm": {}, "torchvision": {}}  # type: ignore[var-annotated]
    for members in sharing.values():
        if len(members) < 2:
            continue
        size = min(_input_size(catalogue, name) for catalogue, name in members)
        answers: list[tuple[int, Tensor]] = []
        for catalogue, name in members:
            answer = _answer(catalogue, name, entries, laws.get(name), size)
            same = [
                group
                for group, other in answers
                if answer is not None and other.shape == answer.shape and _difference(answer, other) < _ALIKE
            ]
            if same:
                group = same[0]
            else:
                number += 1
                group = number
                if answer is not None:
                    answers.append((group, answer))
            groups[catalogue.name][name] = group
            distances = [f"{_difference(answer, other):.1e}" for _, other in answers if answer is not None]
            print(f"{catalogue.name}/{name}: {group} {distances}", flush=True)
    return groups["timm"], groups["torchvision"]


def _input_size(catalogue: Catalogue, name: str) -> int:
    if catalogue is TIMM:
        return int(timm.get_pretrained_cfg(name).input_size[-1])
    return catalogue.spec(name).crop[0]


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def _answer(
    catalogue: Catalogue, name: str, entries: Mapping[str, Entry], law: Law | None, size: int
) -> Tensor | None:
    """What the architecture answers for images of `size`, with weights that follow from its tensors' names.

    None where it cannot be run, or where its answers hardly depend on the image.
    """
    arguments: dict[str, Any] = {"num_classes": _CLASSES}
    if catalogue is TIMM:
        if timm.get_pretrained_cfg(name).fixed_input_size or (law and law.argument == "img_size"):
            arguments["img_size"] = size
        if law and law.argument == "window_size":
            arguments["window_size"] = law.default * size // _input_size(TIMM, name)
    try:
        module = catalogue.blank(name, **arguments)
        if sum(parameter.numel() for parameter in module.parameters()) > _LARGEST:
            return None
        last = entries[name].last if catalogue is TIMM else TORCHVISION.index()[name].last
        body = {full: short for short, full in _body_of(catalogue, name, module, entries).names.items()}
        values = {
            key: _filled(body.get(key, key.replace(last, "last")), tensor)
            for key, tensor in module.state_dict().items()
        }
        module.load_state_dict(values, assign=True)
        module.eval()
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            answer: Tensor = module(images)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        print(f"{name}: not run: {' '.join(str(error).split())[:200]}")
        return None
    one, other = answer
    if not answer.isfinite().all() or _difference(one, other) < _LIVELY:
        print(f"{name}: its answers show nothing")
        return None
    return answer


def _body_of(catalogue: Catalogue, name: str, module: nn.Module, entries: Mapping[str, Entry]) -> Part:
    entry = entries[name] if catalogue is TIMM else TORCHVISION.index()[name]
    return _body(module, entry)


def _filled(name: str, tensor: Tensor) -> Tensor:
    """The tensor with numbers that follow from its name and shape, such as a trained one might have."""
    leaf = name.rpartition(".")[2]
    if not tensor.is_floating_point() or (not isinstance(tensor, nn.Parameter) and "running" not in leaf):
        return tensor.detach()
    count, start = tensor.numel(), zlib.crc32(name.encode()) % (len(_NUMBERS) // 2)
    rest = _NUMBERS[start:]
    numbers = rest.repeat(-(-count // len(rest)))[:count].reshape(tensor.shape)
    if leaf == "running_var":
        return numbers.abs() + 0.5
    if tensor.ndim > 1 and not sized(name, tuple(tensor.shape)):
        return numbers / max(count / tensor.shape[0], 1) ** 0.5
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

    default = timm.get_pretrained_cfg(name)
    others = {full.partition(".")[2]: cfg for full, cfg in get_arch_pretrained_cfgs(name).items()}
    for tag, cfg in {default.tag or "": default, **others}.items():
        yield tag, resolve_data_config(pretrained_cfg=cfg.to_dict())


def _place(values: list[Any], value: Any) -> int:
    if value not in values:
        values.append(value)
    return values.index(value)


def _lines(values: Sequence[Any]) -> str:
    return ",\n".join(map(_json, values))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
