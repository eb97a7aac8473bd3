"""Tensors: the named arrays of the Open Inference Protocol, in each of their encodings."""

import base64
import binascii
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pthserve.errors import MalformedRequest, TooLarge
from pthserve.images.spec import Spec
from pthserve.inference_protocol.numbers import Kind, Text, read
from pthserve.tasks.base import TensorForm, TensorValues

Image = bytes | NDArray[np.uint8] | NDArray[np.float32]
"""An encoded image; its pixels, uint8 (H, W, 3); or a preprocessed tensor, float32 (c, h, w)."""

_NO_STRING = "an element of the input is not a string; an image in JSON must be a base64 string"

MAX_RANK = 8
"""More dimensions than any input has. A longer shape is not quoted in the error."""


Content = bytes | memoryview | Text | Sequence[Any]
"""The elements of an input: bytes as in the binary tensor extension (row-major, little-endian, each element
of BYTES after its length in four bytes); numbers as JSON text; or a sequence, flat or nested like the shape,
whose elements of BYTES are bytes or strings of base64."""

_PER_ELEMENT = 24
"""Maximum bytes of a number in JSON, and of what is beside a text."""


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor of a request, not yet decoded."""

    datatype: str
    shape: tuple[int, ...]
    content: Content


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of a response.

    Attributes:
        values: An array of `shape`, or for BYTES the elements, flat.
        binary: Whether it is sent as binary data.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: TensorValues
    binary: bool = False

    def elements(self) -> NDArray[Any] | list[str]:
        """Return the elements, flat; those of BYTES as strings."""
        if isinstance(self.values, list):
            return [value.decode() for value in self.values]
        return self.values.ravel()

    @property
    def memory(self) -> int:
        """Maximum bytes of the elements together with what they are written as."""
        if isinstance(self.values, list):
            return sum(2 * len(value) + _PER_ELEMENT for value in self.values)
        if self.binary or self.values.size == 0:
            return 2 * self.values.nbytes
        digits = len(str(self.values.max())) + 1 if self.values.dtype == np.uint8 else _PER_ELEMENT
        return self.values.nbytes + digits * self.values.size

    def to_bytes(self) -> bytes:
        """Return the elements as in the binary tensor extension."""
        if isinstance(self.values, list):
            return b"".join(chain.from_iterable((struct.pack("<I", len(v)), v) for v in self.values))
        return self.values.astype(self.values.dtype.newbyteorder("<"), copy=False).tobytes()


def input_forms(spec: Spec) -> tuple[TensorForm, ...]:
    """Return the inputs of a model with the preprocessing `spec`; a request must have one of them."""
    return (
        TensorForm("image", "BYTES", (-1,)),
        TensorForm("pixels", "UINT8", (-1, -1, -1, 3)),
        TensorForm("tensor", "FP32", (-1, spec.channels, *((-1, -1) if spec.whole else spec.crop))),
    )


def images(tensor: Input, spec: Spec, *, max_images: int, max_pixels: int) -> list[Image]:
    """Return the images in `tensor`, in the form that its datatype says; its name does not matter.

    Arrays are views of `content` if that is binary.

    Args:
        max_images: Maximum number of images.
        max_pixels: Maximum size of an image.

    Raises:
        MalformedRequest: Datatype, shape and content do not fit `spec` or each other.
        TooLarge: There are too many images, or too many pixels. Either is raised before memory is allocated.
    """
    forms = {form.datatype: form for form in input_forms(spec)}
    if tensor.datatype not in forms:
        accepted = "; ".join(_described(form) for form in forms.values())
        raise MalformedRequest(f"the input's datatype must be one of: {accepted}")
    _check(tensor.shape, forms[tensor.datatype], max_images, max_pixels)
    if tensor.datatype == "BYTES":
        return list(_byte_strings(tensor))
    values = _pixels(tensor) if tensor.datatype == "UINT8" else _floats(tensor)
    return list(values.reshape(tensor.shape))


def _described(form: TensorForm) -> str:
    return f"{form.datatype} [{', '.join(map(str, form.shape))}] ({form.name})"


def _check(shape: tuple[int, ...], form: TensorForm, max_images: int, max_pixels: int) -> None:
    if len(shape) > MAX_RANK:
        raise MalformedRequest(
            f"the input's shape has {len(shape)} dimensions, but must be {_described(form)}"
        )
    column = form.datatype == "BYTES" and len(shape) == 2 and shape[1] == 1
    fits = len(shape) == len(form.shape) and all(
        size >= 1 if wanted == -1 else size == wanted for size, wanted in zip(shape, form.shape, strict=True)
    )
    if not fits and not (column and shape[0] >= 1):
        raise MalformedRequest(f"the input's shape is {list(shape)}, but must be {_described(form)}")
    if shape[0] > max_images:
        raise TooLarge(f"the request has {shape[0]} images; the limit is {max_images}")
    if form.datatype == "UINT8" and shape[1] * shape[2] > max_pixels:
        raise TooLarge(f"an image has {shape[2]} x {shape[1]} pixels; the limit is {max_pixels}")


def _byte_strings(tensor: Input) -> Iterable[bytes]:
    if isinstance(tensor.content, bytes | memoryview):
        return _split(tensor.content, tensor.shape[0])
    if isinstance(tensor.content, Text):
        raise MalformedRequest(_NO_STRING)
    return map(_decoded, _flat(tensor.content, tensor.shape))


def _split(blob: bytes | memoryview, count: int) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while len(elements) < count and len(blob) - at >= 4:
        (size,) = struct.unpack_from("<I", blob, at)
        elements.append(bytes(blob[at + 4 : at + 4 + size]))
        at += 4 + size
    if len(elements) != count or at != len(blob):
        raise MalformedRequest(
            f"the input's {len(blob)} bytes do not hold {count} elements, each preceded by its length in 4 "
            "bytes"
        )
    return elements


def _decoded(element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    if not isinstance(element, str):
        raise MalformedRequest(_NO_STRING)
    try:
        return base64.b64decode(element, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedRequest("an image in JSON must be base64; or send it as binary data") from error


def _pixels(tensor: Input) -> NDArray[np.uint8]:
    return _array(tensor, np.dtype(np.uint8), "B")


def _floats(tensor: Input) -> NDArray[np.float32]:
    values: NDArray[np.float32] = _array(tensor, np.dtype("<f4"), "f")
    if not np.isfinite(values).all():
        raise MalformedRequest("an element of the input is NaN or infinity")
    return values


def _array(tensor: Input, dtype: np.dtype[Any], kind: Kind) -> NDArray[Any]:
    if isinstance(tensor.content, bytes | memoryview):
        return _binary(tensor.content, tensor.shape, dtype)
    if isinstance(tensor.content, Text):
        return tensor.content.read(tensor.shape, kind)
    return read(_flat(tensor.content, tensor.shape), kind)


def _binary(blob: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    if len(blob) != size:
        raise MalformedRequest(
            f"the input's shape {list(shape)} needs {size} bytes, but {len(blob)} were sent"
        )
    return np.frombuffer(blob, dtype)


def _flat(elements: Sequence[Any], shape: tuple[int, ...]) -> Sequence[Any]:
    """Return `elements`, nested like `shape` or flat already, as a flat sequence."""
    if len(elements) and isinstance(elements[0], list):
        rows: list[Any] = [elements]
        for size in shape:
            if any(not isinstance(row, list) or len(row) != size for row in rows):
                raise MalformedRequest(f"the input's data is nested differently than its shape {list(shape)}")
            rows = list(chain.from_iterable(rows))
        elements = rows
    if len(elements) != math.prod(shape):
        raise MalformedRequest(
            f"the input's shape {list(shape)} needs {math.prod(shape)} elements, but {len(elements)} were "
            "sent"
        )
    return elements
