"""The structure of a pickle, without anything of it being imported, called or hashed at length."""

import collections
import pickle
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from pthserve.files import inert


class Point:
    """Has state, which `pickle` sets."""

    def __init__(self, x: int) -> None:
        self.x = x


class Slotted:
    """Has its state in slots."""

    __slots__ = ("y",)

    def __init__(self) -> None:
        self.y = 5


class Words(list[str]):
    """Is filled after it is made."""


class Table(dict[str, int]):
    """Is filled after it is made."""


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 255, 256, 65535, 65536, -1, 2**31, -(2**31), 2**40, -(2**70), 10**3000),
    *(
        0.0,
        -1.5,
        1e308,
        "",
        "text",
        "\u00e9\n'\\",
        "\U0001f408",
        "x" * 300,
        "\ud83d",
        b"",
        b"bytes",
        b"\xff" * 300,
    ),
    *(
        [],
        [1, [2, [3]]],
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        {},
        {"a": 1, 2: "b", None: 0.5, b"k": []},
    ),
    {"nested": {"deep": [{"er": (1, "x")}]}},
)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_as_pickle_reads_them(protocol: int) -> None:
    for value in VALUES:
        if protocol < 3 and isinstance(value, bytes):
            continue  # these protocols have no bytes
        if protocol == 0 and isinstance(value, str):
            data = pickle.dumps(value, protocol)
            assert inert.read(data).value == value
            continue
        if protocol < 3 and isinstance(value, dict) and b"k" in value:
            continue
        data = pickle.dumps(value, protocol)
        found = inert.read(data)
        assert found.value == value, value
        assert type(found.value) is type(value)
        assert found.end == len(data)


@pytest.mark.parametrize("protocol", range(6))
def test_what_would_be_made_is_described(protocol: int) -> None:
    point = inert.read(pickle.dumps(Point(3), protocol)).value
    assert isinstance(point, inert.Object)
    assert point.state == {"x": 3}
    ordered = inert.read(pickle.dumps(collections.OrderedDict(a=1, b=2), protocol)).value
    assert ordered.name == "collections.OrderedDict"
    assert ordered.items == {"a": 1, "b": 2} or ordered.args == ([["a", 1], ["b", 2]],)
    assert inert.read(pickle.dumps(len, protocol)).value.name == "builtins.len"


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_objects_that_are_filled_keep_what_they_would_hold(protocol: int) -> None:
    words = inert.read(pickle.dumps(Words(["a", "b"]), protocol)).value
    assert (words.name.rpartition(".")[2], words.elements) == ("Words", ["a", "b"])
    table = inert.read(pickle.dumps(Table(a=1), protocol)).value
    assert (table.name.rpartition(".")[2], table.items) == ("Table", {"a": 1})
    assert inert.read(pickle.dumps(Slotted(), protocol)).value.state == (None, {"y": 5})


def test_sets_are_lists_and_what_refers_to_itself_is_read() -> None:
    assert sorted(inert.read(pickle.dumps({1, 2}, 4)).value) == [1, 2]
    assert sorted(inert.read(pickle.dumps(frozenset({1, 2}), 4)).value) == [1, 2]
    loop: list[Any] = []
    loop.append(loop)
    found = inert.read(pickle.dumps(loop)).value
    assert found[0] is found


def test_persistent_ids_are_kept_in_order() -> None:
    found = inert.read(b"\x80\x02(U\x01aQU\x01bQl.")
    assert [reference.id for reference in found.references] == ["a", "b"]
    assert found.value == found.references


REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "an extension of copyreg": b"\x80\x02\x82\x01.",
    "a larger extension": b"\x80\x02\x84\x01\0\0\0.",
    "a buffer outside": b"\x80\x05\x97.",
    "no opcode": b"\xff.",
    "an empty stack": b".",
    "a mark that is missing": b"t.",
    "a tuple of nothing": b"\x85.",
    "a memo that is empty": b"h\0.",
    "text beyond the end": b"X\xff\xff\xff\xffabc.",
    "bytes beyond the end": b"\x8e" + struct.pack("<Q", 2**60) + b"abc.",
    "an array beyond the end": b"\x96" + struct.pack("<Q", 2**60) + b"abc.",
    "a number of millions of digits": b"I" + b"9" * 2_000_000 + b"\n.",
    "no text": b"X\x01\0\0\0\xff.",
    "a global without a name": b"NN\x93.",
    "a global of a long name": b"c" + b"a" * 1000 + b"\nb\n.",
    "a call of a number": b"K\x01)R.",
    "arguments that are none": b"cos\nsystem\nK\x01R.",
    "the state of a list": b"]}b.",
    "a value for a text": b"U\x01aNNs.",
    "a key without a value": b"}(Nu.",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_pickle_is_refused(case: str) -> None:
    with pytest.raises(inert.BrokenPickle):
        inert.read(REFUSED[case])


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_is_cut_anywhere_is_refused(protocol: int) -> None:
    data = pickle.dumps({"a": [1, 2.5, "text", Point(3), collections.OrderedDict(b=(1, 2, 3, 4))]}, protocol)
    for end in range(len(data)):
        with pytest.raises(inert.BrokenPickle):
            inert.read(data[:end])


FULL = 2 * 2**20
"""Bytes of a pickle here: enough for as many steps as there may be."""


def times(piece: bytes, before: bytes = b"", after: bytes = b".") -> bytes:
    return before + piece * ((FULL - len(before) - len(after)) // len(piece)) + after


BOMBS: dict[str, Callable[[], bytes]] = {
    "lists": lambda: times(b"]"),
    "dicts": lambda: times(b"}"),
    "sets": lambda: times(b"\x8f"),
    "marks": lambda: times(b"("),
    "nested lists": lambda: times(b"]", after=b"a" * 1000 + b"."),
    "nested tuples as keys": lambda: b"}" + b")" + b"\x85" * 1_000_000 + b"Ns.",
    "memos": lambda: times(b"\x94", b"N"),
    "far memos": lambda: times(b"r\xff\xff\xff\xff", b"N"),
    "calls": lambda: times(b"h\0)R", b"cos\nsystem\nq\0"),
    "calls of calls": lambda: times(b")R", b"cos\nsystem\n"),
    "calls with a long list": lambda: times(
        b"h\1h\0\x85R", b"](" + b"N" * 100_000 + b"eq\0ccollections\nOrderedDict\nq\1"
    ),
    "calls with keywords": lambda: times(b"h\1h\0}\x92", b"(" + b"N" * 100_000 + b"tq\0cos\nsystem\nq\1"),
    "states": lambda: times(b"}b", b"cos\nsystem\n)R"),
    "references": lambda: times(b"Q", b"N"),
    "items": lambda: times(b"h\0)RNNs", b"cos\nsystem\nq\0"),
    "copies of a long text": lambda: times(b"2", b"X\0\0\x10\0" + b"x" * 2**20),
    "whole numbers that hash alike": lambda: b"".join(
        [
            b"}(",
            *(b"\x8a\x0c" + (n * (2**61 - 1)).to_bytes(12, "little") + b"N" for n in range(1, 130_000)),
            b"u.",
        ]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BOMBS)
def test_time_and_memory_grow_with_the_pickle_alone(case: str) -> None:
    data = BOMBS[case]()
    assert len(data) <= FULL
    began = time.monotonic()
    tracemalloc.start()
    try:
        inert.read(data)
    except inert.BrokenPickle:
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 600 * 2**20, f"{most / 2**20:.0f} MiB"
    assert time.monotonic() - began < 120, "hangs"
