"""Checkpoints with bytes and opcodes changed: nothing is imported or called, and all are done soon."""

import argparse
import collections
import datetime
import io
import os
import pickle
import random
import resource
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pthserve.files import weights

from .mutations import mangled
from .reading import read_many

MEMORY = 1024 * 2**20
"""Bytes by which the process may grow."""


class Bait:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.canary}",)


def checkpoint(dice: random.Random, canary: Path) -> dict[str, Any]:
    """As a training script saves it, with what people put beside the weights, and a call of a command."""
    state = {f"layer{n}.weight": torch.randn(2, 3) for n in range(dice.choice((1, 3, 10)))}
    beside: list[Any] = [
        np.float64(0.5),
        np.arange(dice.randrange(20)),
        argparse.Namespace(model="resnet18", lr=1e-3, path=Path("/data")),
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        datetime.datetime(2025, 1, 2, 3, 4, 5),
        {1, 2, 3},
        torch.nn.Linear(2, 2),
        torch.zeros(2, 2).to_sparse(),
        2**70,
        b"bytes",
        None,
    ]
    made = {f"key{n}": dice.choice(beside) for n in range(dice.randrange(6))} | {"bait": Bait(canary)}
    if dice.random() < 0.3:
        made["model_ema"] = dict(state)
    return made | {"state_dict": state}


def _pieces(dice: random.Random) -> bytes:
    """A few opcodes, sound or not."""
    pieces = (
        b"cos\nsystem\n",
        b"cbuiltins\nexec\n",
        b"(S'touch x'\nios\nsystem\n",
        b"\x8c\x05posix\x8c\x06system\x93",
        b"X\x04\0\0\0evil",
        b")R",
        b"R",
        b"\x81",
        b"\x92",
        b"b",
        b"}b",
        b"N}\x86b",
        b"\x82\x01",
        b"\x84\xff\xff\xff\x7f",
        b"Q",
        b"h\x00",
        b"j\xff\xff\xff\xff",
        b"r\xff\xff\xff\xff",
        b"2" * dice.choice((1, 1000, 100_000)),
        b"]" * dice.choice((1, 1000, 100_000)),
        b"(" * dice.choice((1, 1000)),
        b")" + b"\x85" * dice.choice((1, 1000, 100_000)),
        b"\x8e" + struct.pack("<Q", dice.choice((0, 5, 2**31, 2**63 - 1))),
        b"\x96" + struct.pack("<Q", dice.choice((0, 5, 2**31, 2**63 - 1))),
        b"\x8b\xff\xff\xff\x7f",
        b"I" + b"9" * dice.choice((1, 5000)) + b"\n",
        b"\x95" + struct.pack("<Q", 2**62),
        b"s",
        b"u",
        b"e",
        b"a",
        b"0",
        b"1",
        b".",
    )
    return b"".join(dice.choice(pieces) for _ in range(dice.choice((1, 1, 2, 4))))


def _opcodes(dice: random.Random, data: bytes) -> bytes:
    """`data` with opcodes put in, left out or doubled, at boundaries of its own."""
    import pickletools

    try:
        places = [position or 0 for _, _, position in pickletools.genops(data)]
    except Exception:  # it is broken already
        return data
    for _ in range(dice.choice((1, 1, 2, 5))):
        one, other = sorted(dice.choice(places) for _ in range(2))
        change = dice.randrange(4)
        if change == 0:
            data = data[:one] + _pieces(dice) + data[one:]
        elif change == 1:
            data = data[:one] + data[other:]
        elif change == 2:
            data = data[:other] + data[one:other] * dice.choice((1, 2, 50)) + data[other:]
        else:
            data = data[:one] + _pieces(dice) + data[other:]
    return data


def mutated(dice: random.Random, canary: Path) -> bytes:
    """A file of torch.save, changed in its bytes, its opcodes, or its container."""
    target = io.BytesIO()
    legacy, protocol = dice.random() < 0.4, dice.choice((2, 2, 2, 4, 5))
    value = checkpoint(dice, canary)
    torch.save(value, target, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    data = target.getvalue()
    kind = dice.randrange(4)
    if kind == 0:
        return mangled(dice, data)
    if legacy:
        start = data.index(b"}", 40) if b"}" in data[40:] else 40
        return (
            data[:start] + _opcodes(dice, data[start:])
            if kind == 1
            else mangled(dice, data[:600]) + data[600:]
        )
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(made, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = _opcodes(dice, content) if kind < 3 else mangled(dice, content)
            elif dice.random() < 0.02:
                content = mangled(dice, content)
            archive.writestr(name, content)
    return made.getvalue()


def _fuzz(folder: Path, seed: int, count: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    canary, path = folder / "canary", folder / "model.pth"

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was run")

    _read_every_format(path)  # imports what reading needs
    unpicklers = ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load"))
    for owner, name in unpicklers:
        monkeypatch.setattr(owner, name, forbidden)
    modules, before = set(sys.modules), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def read(dice: random.Random) -> None:
        torch.manual_seed(dice.randrange(2**32))
        path.write_bytes(mutated(dice, canary))
        weights.read(path)

    def check() -> None:
        assert not canary.exists(), "it ran a command"

    outcomes = read_many(seed, "checkpoints", count, read, check)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MEMORY, f"--fuzz-seed {seed}: {grown // 1024} MiB more"
    assert not {
        name for name in set(sys.modules) - modules if not name.startswith(("torch.", "numpy.", "encodings."))
    }
    print(f"{grown // 1024} MiB more")
    return outcomes


def _read_every_format(path: Path) -> None:
    state = {"a.weight": torch.ones(2, 2)}
    for legacy in (False, True):
        torch.save({"n": np.ones(2), "m": state}, path, _use_new_zipfile_serialization=not legacy)
        weights.read(path)
    save_file(state, path)
    weights.read(path)


@pytest.mark.slow
def test_mutated_checkpoints_are_read_or_refused_and_never_run(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    count = max(20, pytestconfig.getoption("fuzz") // 20)
    outcomes = _fuzz(tmp_path, seed, count, monkeypatch)
    assert outcomes["read"]
    assert outcomes["refused"]


@pytest.mark.slow
@pytest.mark.long
def test_ten_thousand_mutated_checkpoints_are_read_or_refused_and_never_run(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = _fuzz(tmp_path, seed, 10_000, monkeypatch)
    assert outcomes["read"]
    assert outcomes["refused"]


def test_the_bait_is_live(tmp_path: Path) -> None:
    """The same files do run their command where nothing holds them back; else the tests above show little."""
    target = io.BytesIO()
    torch.save(checkpoint(random.Random(1), tmp_path / "canary"), target)
    target.seek(0)
    torch.load(target, weights_only=False)
    assert (tmp_path / "canary").exists()
