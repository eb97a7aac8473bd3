"""Metadata: the other content of a checkpoint besides its tensors, as plain values.

Training scripts save arguments, scores, class names and paths. In an inert pickle these are calls that were
not made. This module converts those of well-known classes to text, numbers, lists and dicts. For all others
it returns the attributes, or the name of the class.
"""

import datetime
import math
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from typing import Any

from pthserve.files import inert, tensors
from pthserve.text import quoted

NODES = 50_000
"""Maximum number of values, the least nested first: twice the labels of ImageNet-21k with their indices."""
DEPTH = 10
"""Maximum nesting depth of containers."""
LENGTH = 500
"""Maximum number of characters of a text."""
ELEMENTS = 25_000
"""Maximum number of elements of an array that is converted to a list."""

_TURN = 1000
"""Number of values of a container after which the other containers follow."""
_LEFT_OUT = "..."
_INTEGER_BITS = 64
_NUMPY = re.compile(r"numpy\.(core|_core)\.")
_ARRAYS = {
    f"numpy.{core}.{name}"
    for core in ("core", "_core")
    for name in ("multiarray._reconstruct", "numeric._frombuffer")
}
_DTYPE = re.compile(r"[biuf][1248]|[US]\d{1,4}")
_LISTS = (
    "builtins.set",
    "builtins.frozenset",
    "builtins.list",
    "builtins.tuple",
    "collections.deque",
    "torch.Size",
)


def mapping(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return the items of a dict, or of an object that would be one; None for other values."""
    if isinstance(value, dict):
        return value.items()
    if not isinstance(value, inert.Object):
        return None
    if value.items is not None:
        return value.items.items()
    match value:
        # An OrderedDict of Python 2, or a Counter.
        case inert.Object(name="collections.OrderedDict" | "collections.Counter", args=(dict() as inner,)):
            return inner.items()
        case inert.Object(name="collections.OrderedDict", args=(list() as pairs,)):
            return _pairs(pairs)
        case inert.Object(name="collections.OrderedDict" | "collections.defaultdict" | "collections.Counter"):
            return ()
    return None


def _pairs(pairs: list[Any]) -> Iterator[tuple[Any, Any]]:
    for pair in pairs:
        match pair:
            case [str() | int() as key, value] | (str() | int() as key, value):
                yield key, value
            case _:
                return


def attributes(value: Any) -> dict[Any, Any]:
    """Return the attributes that an object would have; empty for other values."""
    match value:
        case inert.Object(state=dict() as state):
            return state
        case inert.Object(state=(dict() | None as state, dict() as slots)):
            return state or slots
    return {}


def class_of(value: inert.Object) -> str:
    """Return the dotted name of the class that an object would have."""
    match value:
        case inert.Object(name="copyreg._reconstructor", args=(inert.Global() as kind, *_)):
            return kind.name  # as protocols below 2 write it
    return value.name


def is_module(value: Any) -> bool:
    """Return whether an object would be an `nn.Module`."""
    return {"_modules", "_parameters"} <= attributes(value).keys()


def is_array(value: Any) -> bool:
    """Return whether an object would be a numpy array."""
    return isinstance(value, inert.Object) and value.name in _ARRAYS


def plain(root: Any, state_dicts: Collection[int] = ()) -> dict[str, Any]:
    """Return the content of `root`, an inert value, without its tensors.

    Args:
        state_dicts: The `id` of each state dict, which is left out. If `root` is one, only its tensors are.

    Returns:
        A dict of text, numbers, booleans, None, lists and dicts, within the limits of this module; "..."
        stands for values that are left out.
    """
    pairs = mapping(root)
    if pairs is None:
        return {}
    if id(root) in state_dicts:
        pairs = ((key, value) for key, value in pairs if tensors.stored(value) is None)
    return _Plain(state_dicts).all_of(pairs)


class _Plain:
    """Converts values level by level and in turns, so that a large container does not use up the limit."""

    def __init__(self, state_dicts: Collection[int]) -> None:
        self._state_dicts = state_dicts
        self._left = NODES
        self._queue: deque[tuple[Any, Iterator[Any], int]] = deque()

    def all_of(self, pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        self._queue.append((shown, iter(pairs), 1))
        while self._queue:
            target, source, depth = self._queue.popleft()
            for value in islice(source, _TURN):
                if self._left <= 0:
                    self._put(
                        target, (_LEFT_OUT, _LEFT_OUT) if isinstance(target, dict) else _LEFT_OUT, depth
                    )
                    break
                self._put(target, value, depth)
            else:
                if (rest := next(source, source)) is not source:  # the others come first
                    self._queue.append((target, chain((rest,), source), depth))
        return shown

    def _put(self, target: Any, value: Any, depth: int) -> None:
        self._left -= 1
        if isinstance(target, dict):
            target[_key(value[0])] = self._one(value[1], depth)
        else:
            target.append(self._one(value, depth))

    def _one(self, value: Any, depth: int) -> Any:
        """Return the plain value; a container is filled later."""
        if id(value) in self._state_dicts:
            return "a state dict"
        value = self._known(value)
        if isinstance(value, inert.Object) and value.name in _LISTS and value.elements is None:
            value = value.args[0] if value.args else []
        source: Iterable[Any] | None = value if isinstance(value, list | tuple) else None
        if source is None and isinstance(value, inert.Object) and not is_module(value):
            source = value.elements
        made: Any = []
        if source is None and not is_module(value):
            source, made = mapping(value), {}
        if source is None and not is_module(value):
            source = attributes(value).items() or None
        if source is None:
            return _leaf(value)
        if depth >= DEPTH:
            return _LEFT_OUT
        self._queue.append((made, iter(source), depth + 1))
        return made

    def _known(self, value: Any) -> Any:
        """Convert an object of a well-known class; return other values unchanged."""
        if not isinstance(value, inert.Object):
            return value
        with suppress(ValueError, TypeError, LookupError, OverflowError, AttributeError):
            if _NUMPY.match(value.name):
                return self._numpy(value)
            if value.name.startswith("omegaconf."):
                return _omegaconf(value)
            known = _KNOWN.get(value.name)
            if known:
                return known(*value.args)
            if value.name.startswith("pathlib."):
                return "/".join(map(_text, value.args)).replace("//", "/", 1)
        return value

    def _numpy(self, value: inert.Object) -> Any:
        """Convert a numpy scalar or array."""
        match value.name.rpartition(".")[2], value.args, value.state:
            case "scalar", (dtype, data), _:
                return self._numbers(dtype, data, ())
            case "_reconstruct", _, (_, tuple() as shape, _, _, list() as held):
                return held if len(shape) == 1 else _leaf(value)
            case "_reconstruct", _, (_, tuple() as shape, dtype, _, data):
                return self._numbers(dtype, data, shape)
            case "_frombuffer", (data, dtype, tuple() as shape, *_), _:
                return self._numbers(dtype, data, shape)
        return value

    def _numbers(self, dtype: Any, data: Any, shape: tuple[int, ...]) -> Any:
        import numpy as np

        code, order = dtype.args[0], dtype.state[1] if dtype.state else "<"
        if not _DTYPE.fullmatch(code) or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
            raise TypeError
        size = math.prod(shape)
        if size > ELEMENTS or len(shape) > DEPTH:
            return f"a numpy array of {quoted(code)} {list(shape)[:DEPTH]}"
        kind = np.dtype(("<" if order in "|=" else order) + code)
        raw = _bytes(data, size * kind.itemsize)
        self._left -= size + len(raw) // 64
        array = np.frombuffer(raw, kind)
        if kind.kind == "S":
            array = array.astype(f"U{kind.itemsize}")  # ASCII
        return array.reshape(shape).tolist()


def _bytes(value: Any, size: int) -> bytes:
    """Return `size` bytes, which pickle protocol 2 stores as text in Latin-1; raises TypeError."""
    match value:
        case bytes() if len(value) == size:
            return value
        case str() if len(value) == size:  # of Python 2
            return value.encode("latin-1")
        case inert.Object(name="_codecs.encode", args=(str() as text, "latin1")) if len(text) == size:
            return text.encode("latin-1")
    raise TypeError


def _leaf(value: Any) -> Any:
    """Convert a value that is not a container to one that JSON can represent."""
    match value:
        case None | bool():
            return value
        case int():
            return (
                value if value.bit_length() <= _INTEGER_BITS else f"an integer of {value.bit_length()} bits"
            )
        case float():
            return value if math.isfinite(value) else str(value)
    return _text(value)


def _text(value: Any) -> str:
    """Describe a value in a few words."""
    match value:
        case str():
            text = value if len(value) <= LENGTH else value[:LENGTH] + _LEFT_OUT
            return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
        case (bytes() as data) | inert.Object(name="builtins.bytearray", args=(bytes() as data, *_)):
            return f"{len(data)} bytes"
        case inert.Object(name="_codecs.encode", args=(str() as text, *_)):
            return f"{len(text)} bytes"
        case inert.Global():
            return value.name
        case inert.Reference():
            return "a reference"
        case inert.Object(name="builtins.getattr", args=(inert.Global() as owner, str() as name)):
            return f"{owner.name}.{name[:LENGTH]}"  # the member of an enumeration
        case inert.Object():
            tensor = tensors.stored(value)
            if tensor is not None:
                return f"a tensor of {tensor.dtype or tensor.oddity} {list(tensor.shape)}"
            simple = [arg for arg in value.args[:4] if isinstance(arg, str | int | float | None)]
            return (
                f"{value.name}({', '.join(quoted(repr(_leaf(arg))) for arg in simple)})"
                if simple
                else value.name
            )
    return str(value) if isinstance(value, int | float | None) else type(value).__name__


def _key(value: Any) -> str:
    return str(_leaf(value))


def _omegaconf(value: inert.Object) -> Any:
    """Return the content of a node of OmegaConf: other nodes, or a value."""
    held = attributes(value)
    return held.get("_content", held.get("_val", value))


def _datetime(data: Any, *_: Any) -> str:
    high, low, month, day, hour, minute, second, *fraction = _bytes(data, 10)
    moment = (
        256 * high + low,
        month & 127,
        day,
        hour,
        minute,
        second,
        int.from_bytes(bytes(fraction), "big"),
    )
    return datetime.datetime(*moment).isoformat()


def _date(data: Any) -> str:
    high, low, month, day = _bytes(data, 4)
    return datetime.date(256 * high + low, month, day).isoformat()


def _time(data: Any, *_: Any) -> str:
    hour, minute, second, *fraction = _bytes(data, 6)
    return datetime.time(hour & 127, minute, second, int.from_bytes(bytes(fraction), "big")).isoformat()


_KNOWN: Mapping[str, Callable[..., Any]] = {
    "datetime.datetime": _datetime,
    "datetime.date": _date,
    "datetime.time": _time,
    "datetime.timedelta": lambda *parts: str(datetime.timedelta(*parts)),
    "decimal.Decimal": _text,
    "torch.device": lambda kind, index=None: kind if index is None else f"{kind}:{index}",
}
"""By the name of a class: a function from its arguments to a plain value."""
