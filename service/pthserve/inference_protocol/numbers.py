"""Numbers: many numbers into an array, piece by piece.

A piece is so short that the thread that reads it keeps nobody waiting: neither JSON's nor protobuf's reader
lets go of the interpreter while it makes Python's numbers. These take ten times an array's memory, so there
are never more of them than a piece has.
"""

import math
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from pthserve.errors import MalformedRequest

Kind = Literal["B", "f"]
"""Which numbers an array holds, as `array` names them: whole ones from 0 to 255, or floats of 32 bits."""

PIECE = 2**15
"""Bytes of JSON, or numbers, in a piece; of those that are read at once."""

_SPACES = b" \t\r\n"
_DIGITS = bytes.maketrans(b"123456789+-.eE", b"0" * 14)
_BARE = bytes.maketrans(b"[]", b"  ")
_WRONG = {
    "B": "an element of the input is not an integer from 0 to 255",
    "f": "an element of the input is not a number in the range of FP32",
}


@dataclass(frozen=True, slots=True)
class Text:
    """An array as JSON writes it, flat or nested: `json[start:end]`, which begins with a bracket."""

    json: bytes
    start: int
    end: int

    def read(self, shape: tuple[int, ...], kind: Kind) -> NDArray[Any]:
        """The numbers of an array of that shape, flat. Raises MalformedRequest where it is another."""
        values = array(kind)
        brackets = []
        for piece in self._pieces():
            shapes = piece.translate(_DIGITS, _SPACES)
            if b"0[" in shapes or b"]0" in shapes:
                raise MalformedRequest(
                    "the input's data is not valid JSON: a comma is missing next to a bracket"
                )
            brackets.append(shapes.translate(None, b"0"))
            _extend(values, _parsed(piece, kind), kind)
        if len(values) != math.prod(shape):
            raise MalformedRequest(
                f"the input's shape {list(shape)} needs {math.prod(shape)} elements, but {len(values)} were "
                "sent"
            )
        found = b",".join(brackets)
        if found.translate(None, b"[,]"):
            raise MalformedRequest(_WRONG[kind])
        if found not in (_brackets((len(values),)), _brackets(shape)):
            raise MalformedRequest(f"the input's data is nested differently than its shape {list(shape)}")
        return np.frombuffer(values, values.typecode)

    def _pieces(self) -> Iterator[bytes]:
        """The text, cut at commas."""
        start = self.start
        while start + 2 * PIECE < self.end:
            end = self.json.find(b",", start + PIECE, start + 2 * PIECE)
            if end < 0:
                raise MalformedRequest(f"an element of the input is longer than {PIECE} bytes")
            yield self.json[start:end]
            start = end + 1
        yield self.json[start : self.end]


def read(elements: Sequence[Any], kind: Kind) -> NDArray[Any]:
    """`elements`, flat, as an array. Raises MalformedRequest where one is none of that kind."""
    values = array(kind)
    for start in range(0, len(elements), PIECE):
        _extend(values, list(elements[start : start + PIECE]), kind)
    return np.frombuffer(values, values.typecode)


def _parsed(piece: bytes, kind: Kind) -> list[Any]:
    try:
        elements: list[Any] = orjson.loads(b"[%b]" % piece.translate(_BARE))
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(_WRONG[kind]) from error
    return elements


def _extend(values: "array[Any]", elements: list[Any], kind: Kind) -> None:
    time.sleep(0)  # whoever waits for the interpreter has it now, and not in five milliseconds
    try:
        values.fromlist(elements)
    except (TypeError, OverflowError) as error:
        raise MalformedRequest(_WRONG[kind]) from error


def _brackets(shape: tuple[int, ...]) -> bytes:
    """What is left of an array of that shape in JSON without its numbers and spaces."""
    text = b""
    for size in reversed(shape):
        text = b"[%b]" % ((text + b",") * size)[:-1]
    return text
