"""ONNX files: find the external weights and the operators of a model without a protobuf parser.

A parser would create objects for everything that a file declares; this module only walks over its fields,
within limits. OpenVINO reads the computation itself.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from pthserve.errors import WeightsError
from pthserve.files import formats
from pthserve.text import quoted

FIELDS = 2_000_000
"""Maximum number of fields to walk over; a vision transformer with 24 layers has about 50,000."""
DEPTH = 16
"""Maximum nesting depth of graphs."""
EXTERNAL = 100
"""Maximum number of files with external weights."""
_LENGTH = 1000
"""Maximum number of bytes of a name."""

# Field numbers of ONNX messages: onnx.proto of version 1.23.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 7, 10
_NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_TENSOR_EXTERNAL = 13
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def may_be(path: Path) -> bool:
    """Return whether the name of the file ends in .onnx; `formats.of` detects whether it is an ONNX model."""
    return path.suffix.lower() == ".onnx"


def external(file: IO[bytes], name: str) -> list[str]:
    """Return the files with external weights of the ONNX model in `file`, sorted, relative to its folder.

    A file that is not an ONNX model has none.

    Args:
        name: The name of the file, for error messages.

    Raises:
        WeightsError: A path leads out of the folder, or the model is damaged or exceeds the limits.
    """
    if formats.of(file, name) != formats.ONNX:
        return []
    names = sorted(_walked(file).locations)
    for one in names:
        path = PurePosixPath(one)
        if not one.isprintable() or path.is_absolute() or ".." in path.parts or "\\" in one or not path.name:
            raise WeightsError(
                f"keeps its weights in {quoted(repr(one))}; they must be a file in the model's folder"
            )
    if len(names) > EXTERNAL:
        raise WeightsError(f"keeps its weights in {len(names)} files; at most {EXTERNAL} are read")
    return names


def operators(file: IO[bytes]) -> set[str]:
    """Return the operators that the model uses and does not define itself: `Conv`, `domain::Name`."""
    walk = _walked(file)
    return walk.operators - walk.functions


def _walked(file: IO[bytes]) -> "_Walk":
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk = _Walk(data)
            walk.model()
            return walk
    except (IndexError, ValueError) as error:
        raise WeightsError("is truncated or damaged (an ONNX model); save or download it again") from error


class _Walk:
    """Collects the files with external weights, the operators of all nodes, and the model's own functions."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._left = FIELDS
        self.locations: set[str] = set()
        self.operators: set[str] = set()
        self.functions: set[str] = set()

    def model(self) -> None:
        for number, start, end in self._fields(0, len(self._data)):
            if number == _MODEL_GRAPH:
                self._graph(start, end, 0)
            elif number == _MODEL_FUNCTIONS:
                self._function(start, end)

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield number, start and end of each length-delimited field between `start` and `end`."""
        while start < end:
            self._left -= 1
            if self._left < 0:
                raise WeightsError(f"has more than {FIELDS} parts, which is the limit")
            tag, start = self._varint(start)
            wire = tag & 7
            if wire == _VARINT:
                _, start = self._varint(start)
            elif wire in (_FIXED64, _FIXED32):
                start += 8 if wire == _FIXED64 else 4
            elif wire == _BYTES:
                length, start = self._varint(start)
                if start + length > end:
                    raise ValueError("a field ends after the message")
                yield tag >> 3, start, start + length
                start += length
            else:
                raise ValueError("no such type")
        if start > end:
            raise ValueError("a field ends after the message")

    def _varint(self, start: int) -> tuple[int, int]:
        value = 0
        for place in range(10):
            byte = self._data[start + place]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value, start + place + 1
        raise ValueError("a number does not end")

    def _text(self, start: int, end: int) -> str:
        if end - start > _LENGTH:
            raise WeightsError(f"has a name of {end - start} bytes; at most {_LENGTH} are read")
        return bytes(self._data[start:end]).decode()

    def _graph(self, start: int, end: int, depth: int) -> None:
        if depth > DEPTH:
            raise WeightsError(f"has graphs nested more than {DEPTH} deep")
        for number, inner, inner_end in self._fields(start, end):
            if number == _GRAPH_NODE:
                self._node(inner, inner_end, depth)
            elif number == _GRAPH_INITIALIZER:
                self._tensor(inner, inner_end)
            elif number == _GRAPH_SPARSE:
                self._sparse(inner, inner_end)

    def _function(self, start: int, end: int) -> None:
        name = domain = ""
        for number, inner, inner_end in self._fields(start, end):
            if number == _FUNCTION_NAME:
                name = self._text(inner, inner_end)
            elif number == _FUNCTION_DOMAIN:
                domain = self._text(inner, inner_end)
            elif number == _FUNCTION_NODE:
                self._node(inner, inner_end, 1)
        self.functions.add(f"{domain}::{name}" if domain else name)

    def _node(self, start: int, end: int, depth: int) -> None:
        name = domain = ""
        for number, inner, inner_end in self._fields(start, end):
            if number == _NODE_TYPE:
                name = self._text(inner, inner_end)
            elif number == _NODE_DOMAIN:
                domain = self._text(inner, inner_end)
            elif number == _NODE_ATTRIBUTE:
                self._attribute(inner, inner_end, depth)
        self.operators.add(f"{domain}::{name}" if domain not in ("", "ai.onnx") else name)

    def _attribute(self, start: int, end: int, depth: int) -> None:
        for number, inner, inner_end in self._fields(start, end):
            if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                self._tensor(inner, inner_end)
            elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                self._graph(inner, inner_end, depth + 1)
            elif number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
                self._sparse(inner, inner_end)

    def _sparse(self, start: int, end: int) -> None:
        for number, inner, inner_end in self._fields(start, end):
            if number in (_SPARSE_VALUES, _SPARSE_INDICES):
                self._tensor(inner, inner_end)

    def _tensor(self, start: int, end: int) -> None:
        for number, inner, inner_end in self._fields(start, end):
            if number == _TENSOR_EXTERNAL:
                entry = {
                    part: self._text(first, last)
                    for part, first, last in self._fields(inner, inner_end)
                    if part in (_ENTRY_KEY, _ENTRY_VALUE)
                }
                if entry.get(_ENTRY_KEY) == "location":
                    self.locations.add(entry.get(_ENTRY_VALUE, ""))
