"""Numbers: a long list of numbers to an array, in pieces.

The parsers of JSON and protobuf do not release Python's lock while they make numbers, so a piece is short
enough not to delay other threads. Python's numbers take ten times the memory of an array, so only those of
one piece exist at a time.
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
"""The numbers in an array, as `array` names them: integers from 0 to 255, or 32-bit floats."""

PIECE = 2**15
"""Bytes of JSON, or numbers, that are read at once."""

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
        """Return the numbers, flat; raises MalformedRequest if they do not have that shape and kind."""
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
        nesting = b",".join(brackets)
        if nesting.translate(None, b"[,]"):
            raise MalformedRequest(_WRONG[kind])
        if nesting not in (_brackets((len(values),)), _brackets(shape)):
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
    """Return `elements`, which are flat, as an array; raises MalformedRequest if one is not of that kind."""
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
    time.sleep(0)  # let a thread that waits for Python's lock have it now, not after five milliseconds
    try:
        values.fromlist(elements)
    except (TypeError, OverflowError) as error:
        raise MalformedRequest(_WRONG[kind]) from error


def _brackets(shape: tuple[int, ...]) -> bytes:
    """Return the brackets and commas of an array of that shape in JSON."""
    text = b""
    for size in reversed(shape):
        text = b"[%b]" % ((text + b",") * size)[:-1]
    return text
