"""Inert: read the structure of a pickle without running it.

A pickle is a program: it names functions and classes, which an unpickler calls. This reader imports and calls
nothing. A name becomes a `Global`, a call becomes an `Object` with the arguments, and a persistent id becomes
a `Reference`. The modules `tensors` and `metadata` interpret some of them by name.

Time and memory are proportional to the length of the pickle: the reader runs at most STEPS opcodes, does not
copy values that it has read, and hashes only values whose hash takes constant time.
"""

import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pthserve.errors import WeightsError

BYTES = 8 * 2**20
"""Maximum size of the part of a file that lists its tensors: thousands of tensors need a hundredth of it."""
STEPS = 2_000_000
"""Maximum number of opcodes of a pickle. A tensor needs about 30; an optimizer adds two tensors for each."""
NAME = 500
"""Maximum number of characters of a global's name."""
KEY_BITS = 64
"""Maximum number of bits of an integer as the key of a dict: many larger ones could have the same hash."""

_PYTHON2 = 3
"""Protocols below this number use the names of the standard library of Python 2."""


class BrokenPickle(Exception):
    """The bytes are not a pickle, or end within one."""


class TruncatedPickle(BrokenPickle):
    """The bytes end within a pickle."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A class or a function, by its dotted name."""

    name: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reference:
    """A value outside the pickle, such as a storage; `id` is its persistent id."""

    id: Any


@dataclass(slots=True, eq=False, repr=False)
class Object:
    """A call of a class or a function that was not made.

    Attributes:
        name: The dotted name of the class or function.
        state: The state of the object, usually its attributes.
        items, elements: The items or elements that would have been added, as in a dict or a list.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] | None = None
    elements: list[Any] | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Pickle:
    """The content of a pickle.

    Attributes:
        value: Made of None, bool, int, float, str, bytes, list, tuple, dict, Global, Reference and Object; a
            set is a list. Lists, dicts and objects may contain themselves, and may be nested very deeply.
        end: The index after the pickle.
    """

    value: Any
    end: int
    references: list[Reference]


def check_length(size: int) -> None:
    """Raise WeightsError if the part of a file that lists its tensors has more than BYTES bytes."""
    if size > BYTES:
        raise WeightsError(
            f"lists its tensors in {size} bytes, and at most {BYTES} are read; save the state dict alone"
        )


def read(data: bytes, start: int = 0) -> Pickle:
    """Return the pickle in `data` that begins at `start`.

    Raises:
        BrokenPickle: It is not a pickle, or has more than STEPS opcodes.
    """
    reader = _Reader(data, start)
    try:
        return Pickle(reader.run(), reader.at, reader.references)
    except BrokenPickle:
        raise
    except (ArithmeticError, LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise BrokenPickle(f"{type(error).__name__} at byte {reader.at}") from error


class _Reader:
    """The stack machine of the format; `pickletools` describes each opcode."""

    def __init__(self, data: bytes, start: int) -> None:
        self.at = start
        self.references: list[Reference] = []
        self._data = data
        self._protocol = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        data, opcodes = self._data, _OPCODES
        for _ in range(STEPS):
            if self.at >= len(data):
                raise TruncatedPickle("it ends too early")
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self._stack.pop()
            opcode = opcodes.get(code)
            if opcode is None:
                raise BrokenPickle(f"opcode {code:#04x} at byte {self.at - 1}")
            opcode(self)
        raise BrokenPickle(f"it takes more than {STEPS} steps")

    # --- pieces of the data

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        end = self.at + size
        if end > len(self._data):
            raise TruncatedPickle("it ends too early")
        piece = self._data[self.at : end]
        self.at = end
        return piece

    def number(self, width: int) -> int:
        """Return the next `width` bytes as an unsigned number."""
        return int.from_bytes(self.take(width), "little")

    def line(self) -> bytes:
        """Return the rest of the line without its newline."""
        end = self._data.find(b"\n", self.at)
        if end < 0:
            raise TruncatedPickle("it ends too early")
        piece = self._data[self.at : end]
        self.at = end + 1
        return piece

    # --- values

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def integer_line(self) -> None:
        text = self.line()
        self.push({b"00": False, b"01": True}.get(text) if text in (b"00", b"01") else int(text))

    def binary_float(self) -> None:
        self.push(struct.unpack(">d", self.take(8))[0])

    def byte_string(self, width: int) -> None:
        """Push a string of Python 2 as text, or as bytes if it is not UTF-8."""
        piece = self.take(self.number(width))
        try:
            self.push(piece.decode())
        except UnicodeDecodeError:
            self.push(piece)

    def text(self, width: int) -> None:
        self.push(str(self.take(self.number(width)), "utf-8", "surrogatepass"))

    def protocol(self) -> None:
        self._protocol = self.number(1)

    # --- the stack and the memo

    def mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def since_mark(self) -> list[Any]:
        """Remove the values since the last mark from the stack and return them."""
        values = self._stack
        self._stack = self._marked.pop()
        return values

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.since_mark()

    def put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def get(self, place: int) -> None:
        self.push(self._memo[place])

    # --- containers

    def tuple_of(self, count: int) -> None:
        values = tuple(self._stack[-count:])
        if len(values) < count:
            raise BrokenPickle("a tuple without values")
        del self._stack[-count:]
        self.push(values)

    def append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Object):
            if target.elements is None:
                target.elements = []
            target = target.elements
        if not isinstance(target, list):
            raise BrokenPickle("values are put into what is not a list")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Object):
            if target.items is None:
                target.items = {}
            target = target.items
        if not isinstance(target, dict):
            raise BrokenPickle("values are put into what is not a dict")
        target.update(_pairs(values))

    # --- globals and calls

    def named(self, module: Any, name: Any) -> None:
        """Push a global with the name that it has in Python 3."""
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > NAME:
            raise BrokenPickle("a global without a name")
        if self._protocol < _PYTHON2:
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.push(Global(f"{module}.{name}"))

    def named_by_lines(self) -> None:
        self.named(self.line().decode(), self.line().decode())

    def named_by_stack(self) -> None:
        name = self._stack.pop()
        self.named(self._stack.pop(), name)

    def call(self, function: Any, args: Any) -> None:
        """Push an object instead of calling the function."""
        if not isinstance(args, tuple):
            raise BrokenPickle("arguments that are not a tuple")
        match function:
            case Global(name=name) | Object(name=name) | Reference(id=("module", Global(name=name), *_)):
                self.push(Object(name, args))  # the last is how torch.save's legacy format writes a class
            case _:
                raise BrokenPickle("a call of what is not a function")

    def call_by_stack(self) -> None:
        args = self._stack.pop()
        self.call(self._stack.pop(), args)

    def call_with_keywords(self) -> None:
        keywords, args = self._stack.pop(), self._stack.pop()
        self.call(self._stack.pop(), args)
        self._stack[-1].state = keywords

    def instance_by_lines(self) -> None:
        args = tuple(self.since_mark())
        self.named_by_lines()
        self.call(self._stack.pop(), args)

    def instance_by_stack(self) -> None:
        function, *args = self.since_mark()
        self.call(function, tuple(args))

    def refer(self, name: Any) -> None:
        self.references.append(Reference(name))
        self.push(self.references[-1])

    def build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if not isinstance(target, Object):
            raise BrokenPickle("the state of what is not an object")
        target.state = state


def _pairs(values: list[Any]) -> Iterator[tuple[Any, Any]]:
    if len(values) % 2:
        raise BrokenPickle("a key without a value")
    for place in range(0, len(values), 2):
        yield _key(values[place]), values[place + 1]


def _key(value: Any) -> Any:
    """Return `value` as the key of a dict, or an object for it if hashing it could be slow or endless."""
    if value is None or isinstance(value, str | bytes | float | Global | Object | Reference):
        return value
    if isinstance(value, int) and value.bit_length() <= KEY_BITS:
        return value
    return Object("key", (value,))


_STOP = ord(".")


def _signed(width: int) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(int.from_bytes(reader.take(width), "little", signed=True))


def _long(width: int) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(
        int.from_bytes(reader.take(reader.number(width)), "little", signed=True)
    )


def _bytes(width: int) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(reader.take(reader.number(width)))


def _constant(value: object) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(value)


_OPCODES: dict[int, Callable[[_Reader], object]] = {
    code[0]: opcode
    for code, opcode in {
        b"\x80": _Reader.protocol,
        b"\x95": lambda reader: reader.take(8),  # the length of a frame, which is needed only for streams
        b"(": _Reader.mark,
        b"0": _Reader.pop,
        b"1": _Reader.since_mark,
        b"2": lambda reader: reader.push(reader._stack[-1]),
        b"N": _constant(None),
        b"\x88": _constant(True),
        b"\x89": _constant(False),
        b"I": _Reader.integer_line,
        b"L": lambda reader: reader.push(int(reader.line().rstrip(b"L"))),
        b"J": _signed(4),
        b"K": lambda reader: reader.push(reader.number(1)),
        b"M": lambda reader: reader.push(reader.number(2)),
        b"\x8a": _long(1),
        b"\x8b": _long(4),
        b"F": lambda reader: reader.push(float(reader.line())),
        b"G": _Reader.binary_float,
        b"S": lambda reader: reader.push(reader.line()[1:-1].decode("latin-1")),
        b"T": lambda reader: reader.byte_string(4),
        b"U": lambda reader: reader.byte_string(1),
        b"V": lambda reader: reader.push(str(reader.line(), "raw-unicode-escape")),
        b"X": lambda reader: reader.text(4),
        b"\x8c": lambda reader: reader.text(1),
        b"\x8d": lambda reader: reader.text(8),
        b"B": _bytes(4),
        b"C": _bytes(1),
        b"\x8e": _bytes(8),
        b"\x96": _bytes(8),
        b")": _constant(()),
        b"t": lambda reader: reader.push(tuple(reader.since_mark())),
        b"\x85": lambda reader: reader.tuple_of(1),
        b"\x86": lambda reader: reader.tuple_of(2),
        b"\x87": lambda reader: reader.tuple_of(3),
        b"]": lambda reader: reader.push([]),
        b"\x8f": lambda reader: reader.push([]),
        b"l": lambda reader: reader.push(reader.since_mark()),
        b"\x91": lambda reader: reader.push(reader.since_mark()),
        b"}": lambda reader: reader.push({}),
        b"d": lambda reader: reader.push(dict(_pairs(reader.since_mark()))),
        b"a": lambda reader: reader.append([reader._stack.pop()]),
        b"e": lambda reader: reader.append(reader.since_mark()),
        b"\x90": lambda reader: reader.append(reader.since_mark()),
        b"s": lambda reader: reader.set_items([reader._stack.pop(), reader._stack.pop()][::-1]),
        b"u": lambda reader: reader.set_items(reader.since_mark()),
        b"p": lambda reader: reader.put(int(reader.line())),
        b"q": lambda reader: reader.put(reader.number(1)),
        b"r": lambda reader: reader.put(reader.number(4)),
        b"\x94": lambda reader: reader.put(len(reader._memo)),
        b"g": lambda reader: reader.get(int(reader.line())),
        b"h": lambda reader: reader.get(reader.number(1)),
        b"j": lambda reader: reader.get(reader.number(4)),
        b"c": _Reader.named_by_lines,
        b"\x93": _Reader.named_by_stack,
        b"R": _Reader.call_by_stack,
        b"\x81": _Reader.call_by_stack,
        b"\x92": _Reader.call_with_keywords,
        b"i": _Reader.instance_by_lines,
        b"o": _Reader.instance_by_stack,
        b"b": _Reader.build,
        b"P": lambda reader: reader.refer(reader.line().decode("latin-1")),
        b"Q": lambda reader: reader.refer(reader._stack.pop()),
    }.items()
}
"""Opcodes by code. Those for copyreg's extensions and for external buffers are missing, and so refused."""
