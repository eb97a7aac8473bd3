"""Cards, labels and weights that are broken in any way: each is read or refused, soon and in a few words."""

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pthserve.files import card, weights
from pthserve.zoos import architecture

from .mutations import mangled
from .reading import read_many

CARD: dict[str, Any] = {
    "name": "cats",
    "version": "2",
    "weights": "cats.pth",
    "sha256": "ab" * 32,
    "architecture": "resnet18",
    "kwargs": {"num_classes": 3, "a": [1, {"b": None}]},
    "labels": ["tom", "rex", "ox"],
    "preprocessing": {
        "resize": [300, 200],
        "crop": 96,
        "interpolation": "bicubic",
        "mean": 0.5,
        "std": [0.25],
    },
    "golden": [{"image": "tom.jpg", "class_index": 1, "probability": 0.75}],
}
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, 10**4000, 1e308, float("nan"), "", "x" * 20_000, "\x1b[2J", "a\nb", "\u202e"),
    *(
        "../../../etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
        "pipe",
        "folder",
        "loop",
        "a\0b",
        "os:system",
    ),
    *([], {}, [[]] * 500, {"": ""}, {1: 2}, {"0": "a"}, {"a": 0}, ["a"] * 2000, {"<<": {"a": 1}}),
    *("labels.txt", "labels.json", "resnet", "vgg11", "f" * 300, "\N{CAT FACE}", "labels.txt/x"),
)
_YAML = (
    *(
        "&a [*a]",
        "*a",
        "&b {c: *b}",
        "[" * 3000,
        "{a: " * 3000,
        "- " * 3000,
        "!!python/name:os.system",
        "!!binary x",
    ),
    *(
        "!!set {a, b}",
        "2001-01-01",
        "0x" + "f" * 5000,
        "1:59:59",
        '"\\ud83d\\udc31"',
        '"\\ud83d"',
        "<<",
        "? [a]",
        "|\n a",
    ),
    *("%TAG ! x", "---", "...", "!!float x", "!!int x", "!!timestamp x", "!!omap [a]", "'", '"\\x1b"', "\t"),
)
_DTYPES = ("F32", "F16", "BF16", "F8_E4M3", "I64", "BOOL", "F4", "X", 3, None)


def _odd(dice: random.Random, value: Any, odd: Callable[[], Any]) -> Any:
    """`value` with something odd in one place."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        name = dice.choice(list(value))
        if dice.random() < 0.1:
            return {other: inner for other, inner in value.items() if other != name}
        if dice.random() < 0.1:
            return value | {str(odd()): 1}
        return value | {name: _odd(dice, value[name], odd)}
    if isinstance(value, list) and value and dice.random() < 0.6:
        place = dice.randrange(len(value))
        return [*value[:place], _odd(dice, value[place], odd), *value[place + 1 :]]
    return odd()


def _document(dice: random.Random, value: Any) -> bytes:
    for _ in range(dice.choice((0, 1, 1, 2, 3))):
        value = _odd(dice, value, lambda: dice.choice(_VALUES))
    if dice.random() < 0.5:
        text = yaml.dump(value, allow_unicode=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    else:
        text = json.dumps(value, default=str, skipkeys=True, ensure_ascii=dice.random() < 0.5).encode()
    if dice.random() < 0.4:
        lines = text.split(b"\n")
        place = dice.randrange(len(lines))
        key = lines[place].partition(b":")[0] or b"name"
        lines[place] = key + b": " + dice.choice(_YAML).encode()
        text = b"\n".join(lines)
    return mangled(dice, text) if dice.random() < 0.3 else text


def _card(dice: random.Random, folder: Path) -> None:
    (folder / card.FILE).write_bytes(_document(dice, CARD))
    card.read(folder)


def _labels(dice: random.Random, folder: Path) -> None:
    file = dice.choice(("labels.txt", "labels.json"))
    forms: tuple[Any, ...] = (["a", "b", "c"], {"0": "a", "1": "b"}, {"a": 0, "b": 1}, "a\nb")
    (folder / file).write_bytes(_document(dice, dice.choice(forms)))
    (folder / card.FILE).write_text(f"labels: {file}")
    card.read(folder)


def _header(dice: random.Random, folder: Path) -> None:
    """The header of a safetensors file, in any way wrong."""
    names = [f"layer{n}.weight" for n in range(dice.choice((1, 3, 50)))]
    odd = (
        ".",
        "." * 50_000,
        "a." * 40 + "b",
        "x" * 3000,
        "\x1b[2J.w",
        "",
        "\n.w",
        "__metadata__",
        "é.w",
        "\ud83d.w",
    )
    names += [dice.choice(odd) for _ in range(dice.choice((0, 1, 1, 2)))]
    tensors: Any = {
        name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * n, 16 * n + 16]}
        for n, name in enumerate(names)
    }
    numbers = (*_VALUES[:9], 2**31, 2**63, [2**40, 2**40], *_DTYPES, [0, 16], [16, 0], [0, 2**63])
    for _ in range(dice.choice((0, 0, 1, 2))):
        tensors = _odd(dice, tensors, lambda: dice.choice(numbers))
    text = json.dumps(tensors, default=str).encode()
    if dice.random() < 0.2:
        text = mangled(dice, text)
    length = len(text) if dice.random() < 0.9 else dice.choice((0, 1, 2**31, 2**63, len(text) + 9))
    values = torch.full((len(names), 4), dice.choice((0.5, float("nan")))).numpy().tobytes()
    _weights(folder, struct.pack("<Q", length) + text + values)


def _keys(dice: random.Random, folder: Path) -> None:
    """A state dict with names of any kind, and tensors of any type."""
    names = (
        "fc.weight",
        "a" * 2000,
        "." * 2000,
        "\x1b]0;x\a.w",
        "a\nb.c",
        "",
        ".",
        "é.ü",
        "\u202e.x",
        "conv1.weight",
    )
    types = (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.bool,
        torch.uint8,
        torch.complex64,
    )
    state = {
        dice.choice(names) + str(n) * dice.randrange(2): torch.ones(
            [dice.randrange(4) for _ in range(dice.randrange(5))], dtype=dice.choice(types)
        )
        for n in range(dice.choice((1, 4, 30)))
    }
    wrapped: Any = state
    for _ in range(dice.choice((0, 0, 1, 2, 6))):
        wrapped = {
            dice.choice((*names, "state_dict", "model", 3)): wrapped,
            "epoch": dice.choice((1, None, "x")),
        }
    file = folder / "made"
    torch.save(wrapped, file, _use_new_zipfile_serialization=dice.random() < 0.5)
    data = file.read_bytes()
    _weights(folder, mangled(dice, data) if dice.random() < 0.4 else data)


def _weights(folder: Path, data: bytes) -> None:
    (folder / "cats.pth").write_bytes(data)
    architecture.build(weights.read(folder / "cats.pth").state_dict)


_KINDS = {"card": _card, "labels": _labels, "header": _header, "keys": _keys}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, with what a card might name and should not."""
    for name in ("cats.pth", "tom.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", _KINDS)
def test_each_is_read_or_refused_in_a_few_words(
    kind: str, folder: Path, seed: int, pytestconfig: pytest.Config
) -> None:
    count = max(1, pytestconfig.getoption("fuzz") // 20)
    outcomes = read_many(seed, kind, count, lambda dice: _KINDS[kind](dice, folder), lambda: None)
    assert outcomes["refused"]
