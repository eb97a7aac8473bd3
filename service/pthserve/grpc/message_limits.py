"""Message limits: the parts of a message are counted before it is parsed.

Each part takes many times the memory of its bytes once it is parsed.
"""

from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from pthserve.errors import MalformedRequest, TooLarge
from pthserve.inference_protocol.bounds import MAX_TEXT

MAX_PARTS = 2**12
"""Maximum number of fields in a message, nested ones included, and of integers in its lists; PIXELS pixels
count as one."""
PIXELS = 2**10
"""protobuf's parser blocks all other threads while it reads pixels, for about 8 ms per MiB."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SKIPPED = {_FIXED64: 8, _FIXED32: 4}
_PIXELS = "inference.InferTensorContents.uint_contents"
"""The one list of integers that may be long."""
_TEXT = FieldDescriptor.TYPE_STRING
_INTEGERS = {
    FieldDescriptor.TYPE_BOOL,
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
}


def check(kind: type[Message], message: bytes) -> None:
    """Count the parts of `message`, which should be a `kind`.

    Raises:
        TooLarge: It has too many parts.
        MalformedRequest: It is not a `kind`, or has a text of more than MAX_TEXT bytes.
    """
    try:
        left = _count(cast("Descriptor", kind.DESCRIPTOR), memoryview(message), MAX_PARTS)
    except IndexError as error:
        raise MalformedRequest("the message is incomplete") from error
    if left < 0:
        raise TooLarge(f"the message has more than {MAX_PARTS} parts; send numbers as raw contents")


def _count(kind: Descriptor, message: memoryview, left: int) -> int:
    """Return `left` minus the number of parts of `message`; negative if there are more."""
    at = 0
    while at < len(message) and left >= 0:
        left -= 1
        tag, at = _varint(message, at)
        field, wire = kind.fields_by_number.get(tag >> 3), tag & 7
        if wire == _VARINT:
            _, at = _varint(message, at)
        elif wire in _SKIPPED:
            at += _SKIPPED[wire]
        elif wire != _BYTES:
            raise MalformedRequest("the message has a field of an unknown wire type")
        else:
            size, start = _varint(message, at)
            at = start + size
            if at > len(message):
                raise IndexError
            if field is None:
                continue
            if field.message_type is not None:
                left = _count(field.message_type, message[start:at], left)
            elif field.type in _INTEGERS:
                left -= size // PIXELS if field.full_name == _PIXELS else size
            elif field.type == _TEXT and size > MAX_TEXT:
                raise MalformedRequest(f"the message's {field.name} has more than {MAX_TEXT} bytes")
    return left


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the integer at `at` and the index after it; raises IndexError if the message ends before."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise MalformedRequest("the message has an integer that is too long")
