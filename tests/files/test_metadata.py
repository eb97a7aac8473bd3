"""What lies beside the tensors, as plain values: the usual types are recognised, none of them is made."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import omegaconf
import pytest
import torch
from torch import nn

from pthserve.files import inert, metadata, weights


class Colour(enum.Enum):
    """As configurations have them."""

    RED = 1


@dataclasses.dataclass
class Config:
    """As configurations are."""

    name: str
    sizes: tuple[int, ...]


class EasyDict(dict[str, Any]):
    """A dict whose keys are attributes too, as several packages have one."""


def plain(value: Any, protocol: int = 2) -> Any:
    return metadata.plain(inert.read(pickle.dumps({"x": value}, protocol)).value)["x"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3, 3),
        (0.5, 0.5),
        (float("nan"), "nan"),
        (2**70, "an integer of 71 bits"),
        (b"bytes", "5 bytes"),
        ((1, "a"), [1, "a"]),
        ({3}, [3]),
        (frozenset({3}), [3]),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("cat"), "cat"),
        (np.array([1.5, 2.5]), [1.5, 2.5]),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array([3, 4], ">i4"), [3, 4]),
        (np.array(["cat", "dog"]), ["cat", "dog"]),
        (np.array([b"cat", b"dog"]), ["cat", "dog"]),
        (np.array(["cat", None], object), ["cat", None]),
        (np.zeros(100_000), "a numpy array of f8 [100000]"),
        (argparse.Namespace(model="resnet18", lr=0.1), {"model": "resnet18", "lr": 0.1}),
        (types.SimpleNamespace(a=[1]), {"a": [1]}),
        (Path("/data/x"), "/data/x"),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.deque([1, 2]), [1, 2]),
        (EasyDict(a=1), {"a": 1}),
        (Config("x", (1, 2)), {"name": "x", "sizes": [1, 2]}),
        (datetime.datetime(2025, 1, 2, 3, 4, 5), "2025-01-02T03:04:05"),
        (datetime.date(2025, 1, 2), "2025-01-02"),
        (datetime.time(3, 4), "03:04:00"),
        (datetime.timedelta(hours=1), "1:00:00"),
        (decimal.Decimal("1.50"), "1.50"),
        (torch.device("cuda", 1), "cuda:1"),
        (torch.Size([1, 2]), [1, 2]),
        (torch.float16, "torch.float16"),
        (len, "builtins.len"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_usual_types_are_shown_as_what_they_mean(protocol: int, value: Any, shown: Any) -> None:
    assert plain(value, protocol) == shown


def test_enumerations_and_classes_are_shown_by_name() -> None:
    assert plain(Colour.RED).startswith(f"{Colour.__module__}.Colour")
    assert plain(Config) == f"{Config.__module__}.Config"


def test_omegaconf_is_shown_as_what_it_holds() -> None:
    made = omegaconf.OmegaConf.create({"model": {"name": "resnet18", "sizes": [1, 2]}, "lr": 0.1})
    assert plain(made) == {"model": {"name": "resnet18", "sizes": [1, 2]}, "lr": 0.1}


def test_modules_and_tensors_are_named_and_not_shown(tmp_path: Path) -> None:
    beside = {"classifier": nn.Linear(2, 2), "mean": torch.ones(3)}
    torch.save({"model": {"a.weight": torch.ones(2, 2)}, **beside}, tmp_path / "model.pth")
    assert weights.read(tmp_path / "model.pth").metadata == {
        "model": "a state dict",
        "classifier": "torch.nn.modules.linear.Linear",
        "mean": "a tensor of float32 [3]",
    }


def test_what_lies_among_the_tensors_is_shown_without_them(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2), "epoch": 3}, tmp_path / "model.pth")
    assert weights.read(tmp_path / "model.pth").metadata == {"epoch": 3}


@pytest.mark.slow
def test_a_large_part_leaves_room_for_what_stands_beside_it() -> None:
    shown = metadata.plain({"history": [[n] for n in range(200_000)], "args": {"model": "resnet18"}})
    assert shown["args"] == {"model": "resnet18"}
    assert shown["history"][-1] == "..."
    assert len(json.dumps(shown)) < 4 * 2**20


def test_what_is_deep_long_or_refers_to_itself_is_cut() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    shown = metadata.plain({"loop": loop, "deep": deep, "long": "x" * 10_000})
    assert len(shown["long"]) < 1000
    assert json.dumps(shown).count("...") == 3


def test_a_text_that_is_none_can_be_written() -> None:
    json.dumps(plain("\ud83d", 4)).encode()
    assert plain("\ud83d", 4).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nX\x02\0\0\0f8\x85RX\x01\0\0\0xtR",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nX\x02\0\0\0O8\x85RX\x08\0\0\0xxxxxxxxtR",
        b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J\xff\xff\xff\xff\x85cnumpy\ndtype\nX\x02\0\0\0f8\x85R\x89X\0\0\0\0tb",
        b"cdatetime\ndatetime\nX\x0a\0\0\0xxxxxxxxxx\x85R",
        b"cdatetime\ntimedelta\n\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85R",
        b"comegaconf.dictconfig\nDictConfig\n)RNb",
        b"cpathlib\nPosixPath\n(]K\x01tR",
    ],
)
def test_objects_that_cannot_be_are_shown_by_name(data: bytes) -> None:
    value = inert.read(b"\x80\x02}U\x01x" + data + b"s.").value
    shown = metadata.plain(value)["x"]
    assert isinstance(shown, str)
    json.dumps(shown)
