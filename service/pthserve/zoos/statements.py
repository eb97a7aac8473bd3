"""What a checkpoint states of its architecture: beside its tensors, in a file beside it, by its name."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pthserve.files import documents, regular_files
from pthserve.files import labels as label_files
from pthserve.zoos.base import Source

CONFIG = "config.json"
"""What timm and transformers write beside the weights that they save."""

_BYTES = 4 * 2**20
_NAMES = ("architecture", "arch", "model_name", "model", "timm_model", "backbone", "encoder_name")
"""Under which a training script keeps the name of what it trained, the most telling first."""
_GROUPS = ("args", "hparams", "hyper_parameters", "config", "cfg", "opt", "model_args", "pretrained_cfg")
"""Under which it keeps its options, among them those names."""
_PRETRAINED = ("pretrained_cfg", "default_cfg")
_ARGUMENTS = ("model_args", "model_kwargs")
"""Under which timm keeps what else than defaults it built a model with."""
_LENGTH = 200
_COUNT = 64
"""Most arguments, and numbers of one."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A name, and where it stands, in words."""

    name: str
    where: str


def architectures(source: Source) -> Iterator[Statement]:
    """Each name of an architecture that the checkpoint, or the `config.json` beside it, states."""
    for values, where in _documents(source):
        for group in ("", *_GROUPS):
            inner = values.get(group) if group else values
            if not isinstance(inner, Mapping):
                continue
            for key in _NAMES:
                name = inner.get(key)
                if isinstance(name, str) and len(name) <= _LENGTH:
                    yield Statement(name, f"{f'{group}.' if group else ''}{key} {where}")


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments with which the architecture `name` was built, and where they stand, in words."""

    name: str
    values: Mapping[str, Any]
    where: str


def arguments(source: Source) -> Arguments | None:
    """What the checkpoint, or the `config.json` beside it, states of the arguments of timm's builder."""
    for values, where in _documents(source):
        for inner in (values, *(values.get(group) for group in _GROUPS)):
            if not isinstance(inner, Mapping):
                continue
            name = next((inner[key] for key in _NAMES if isinstance(inner.get(key), str)), None)
            for key in _ARGUMENTS:
                stated = inner.get(key)
                if not (name and isinstance(stated, Mapping)):
                    continue
                # How many classes there are, the weights tell.
                if stated := {one: value for one, value in stated.items() if one != "num_classes"}:
                    return Arguments(name[:_LENGTH], stated, f"{key} {where}")
    return None


def is_plain(values: Mapping[Any, Any]) -> bool:
    """Whether `values` are a few arguments by name, each a number, a short text, or a short list of such."""
    return len(values) <= _COUNT and all(
        isinstance(key, str)
        and key.isidentifier()
        and (
            _is_plain(value)
            or (isinstance(value, list) and len(value) <= _COUNT and all(map(_is_plain, value)))
        )
        for key, value in values.items()
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LENGTH
    return value is None or isinstance(value, bool | int | float)


def pretrained_cfg(source: Source) -> tuple[Mapping[str, Any], str] | None:
    """How timm says that images are preprocessed for these weights, and where that stands."""
    for values, where in _documents(source):
        for key in _PRETRAINED:
            cfg = values.get(key)
            if isinstance(cfg, Mapping) and cfg.keys() & {"mean", "std", "crop_pct", "input_size"}:
                return cfg, f"{key} {where}"
    return None


def labels(source: Source, count: int) -> tuple[str, ...] | None:
    """The labels of `count` classes in the `config.json` beside the weights; None where it has none."""
    for values, _ in _documents(source):
        if values is not source.metadata and (found := label_files.of_metadata(values, count)):
            names, _ = found
            return None if label_files.are_placeholders(names) else names
    return None


def named_by_file(source: Source, names: Collection[str]) -> str | None:
    """Which of `names` the name of the weights file has in it; None for none, or several apart.

    Where one is a part of another, as of `tf_efficientnet_b0`, the longer one is.
    """
    if source.path is None:
        return None
    text = source.path.name.lower()
    places = [
        (match.start(), match.end(), name)
        for name in names
        for match in re.finditer(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])", text)
    ]
    start, end, longest = max(places, key=lambda place: place[1] - place[0], default=(0, 0, None))
    apart = {name for first, last, name in places if not (start <= first and last <= end)}
    return None if apart - {longest} else longest


def _documents(source: Source) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The metadata, and `config.json`; with where that is."""
    yield source.metadata, "in the file"
    if source.path is None:
        return
    try:
        text = regular_files.read(source.path.with_name(CONFIG), _BYTES).decode()
        values = documents.parse_json(text)
    except (OSError, ValueError):
        return
    if isinstance(values, Mapping):
        yield values, f"in {CONFIG}"
