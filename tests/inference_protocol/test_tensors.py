"""Tensors: what came over the wire becomes images, or an error that says what did not fit."""

import base64
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest

from pthserve.errors import MalformedRequest, TooLarge
from pthserve.images.spec import Spec
from pthserve.inference_protocol.tensors import Image, Input, Output, images, input_forms

SPEC = Spec(crop=(2, 3))
FLOATS = np.arange(36, dtype=np.float32).reshape(2, 3, 2, 3) / 7
PIXELS = np.arange(60, dtype=np.uint8).reshape(2, 2, 5, 3)
STRINGS = [b"\xff\xd8 one", b"", b"three"]


def decode(datatype: str, shape: tuple[int, ...], content: Any, spec: Spec = SPEC) -> list[Image]:
    return images(Input(datatype, shape, content), spec, max_images=4, max_pixels=100)


def prefixed(elements: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


@pytest.mark.parametrize(
    ("datatype", "shape", "content"),
    [
        ("FP32", (2, 3, 2, 3), FLOATS.tobytes()),
        ("FP32", (2, 3, 2, 3), memoryview(b"x" + FLOATS.tobytes())[1:]),
        ("FP32", (2, 3, 2, 3), FLOATS.ravel().tolist()),
        ("FP32", (2, 3, 2, 3), FLOATS.tolist()),
        ("UINT8", (2, 2, 5, 3), PIXELS.tobytes()),
        ("UINT8", (2, 2, 5, 3), PIXELS.ravel().tolist()),
        ("UINT8", (2, 2, 5, 3), PIXELS.tolist()),
    ],
    ids=["fp32", "fp32 unaligned", "fp32 flat", "fp32 nested", "uint8", "uint8 flat", "uint8 nested"],
)
def test_an_array_comes_out_as_it_went_in(datatype: str, shape: tuple[int, ...], content: Any) -> None:
    expected = FLOATS if datatype == "FP32" else PIXELS
    found = decode(datatype, shape, content)
    assert len(found) == 2
    np.testing.assert_array_equal(np.stack(found), expected)
    assert np.stack(found).dtype == expected.dtype


@pytest.mark.parametrize(
    ("shape", "content"),
    [
        ((3,), prefixed(STRINGS)),
        ((3,), memoryview(prefixed(STRINGS))),
        ((3, 1), prefixed(STRINGS)),
        ((3,), STRINGS),
        ((3,), [base64.b64encode(element).decode() for element in STRINGS]),
        ((3, 1), [[base64.b64encode(element).decode()] for element in STRINGS]),
    ],
    ids=["binary", "view", "column", "bytes", "base64", "base64 column"],
)
def test_byte_strings_come_out_as_they_went_in(shape: tuple[int, ...], content: Any) -> None:
    assert decode("BYTES", shape, content) == STRINGS


def test_binary_pixels_are_not_copied() -> None:
    content = PIXELS.tobytes()
    assert all(
        np.shares_memory(image, np.frombuffer(content, np.uint8))
        for image in decode("UINT8", PIXELS.shape, content)
    )


def test_the_forms_follow_the_spec() -> None:
    grey = Spec(crop=(8, 9), mean=(0.5,), std=(0.5,))
    assert {form.datatype: form.shape for form in input_forms(grey)} == {
        "BYTES": (-1,),
        "UINT8": (-1, -1, -1, 3),
        "FP32": (-1, 1, 8, 9),
    }
    assert decode("FP32", (1, 1, 8, 9), bytes(4 * 72), grey)[0].shape == (1, 8, 9)


HUGE = 2**62
LIES = {
    "unknown datatype": ("INT64", (1, 3, 2, 3), [0] * 18),
    "no datatype": ("", (1,), ["aGk="]),
    "no dimensions": ("FP32", (), [1.0]),
    "too few dimensions": ("FP32", (3, 2, 3), [0.0] * 18),
    "too many dimensions": ("FP32", (1, 1, 3, 2, 3), [0.0] * 18),
    "hundreds of dimensions": ("FP32", (1,) * 500, [0.0]),
    "no image": ("FP32", (0, 3, 2, 3), []),
    "no string": ("BYTES", (0,), []),
    "negative batch": ("FP32", (-1, 3, 2, 3), [0.0] * 18),
    "two negative dimensions": ("UINT8", (1, -2, -2, 3), [0] * 12),
    "negative strings": ("BYTES", (-3,), ["aGk="]),
    "huge side": ("FP32", (1, 3, HUGE, 3), [0.0]),
    "another size": ("FP32", (1, 3, 3, 2), [0.0] * 18),
    "channels first": ("UINT8", (1, 3, 2, 5), [0] * 30),
    "zero pixels": ("UINT8", (1, 0, 5, 3), []),
    "strings in a table": ("BYTES", (1, 2), ["aGk=", "aGk="]),
    "blob too short": ("FP32", (1, 3, 2, 3), bytes(71)),
    "blob too long": ("FP32", (1, 3, 2, 3), bytes(73)),
    "blob of nothing": ("UINT8", (1, 2, 5, 3), b""),
    "list too short": ("UINT8", (1, 2, 5, 3), [0] * 29),
    "list too long": ("FP32", (1, 3, 2, 3), [0.0] * 19),
    "ragged": ("FP32", (2, 3, 2, 3), [FLOATS[0].tolist(), FLOATS[1].tolist()[:2]]),
    "nested otherwise": ("FP32", (1, 3, 2, 3), FLOATS[0].tolist()),
    "nested in part": ("FP32", (1, 3, 2, 3), [0.0] * 17 + [[0.0]]),
    "nested below the elements": ("BYTES", (1,), [["aGk="]]),
    "number in words": ("FP32", (1, 3, 2, 3), ["1.0"] * 18),
    "null": ("FP32", (1, 3, 2, 3), [None] * 18),
    "object": ("FP32", (1, 3, 2, 3), [{}] * 18),
    "beyond FP32": ("FP32", (1, 3, 2, 3), [1e300] * 18),
    "beyond any float": ("FP32", (1, 3, 2, 3), [10**400] * 18),
    "not a number": ("FP32", (1, 3, 2, 3), np.full(18, np.nan, np.float32).tobytes()),
    "infinite": ("FP32", (1, 3, 2, 3), np.full(18, -np.inf, np.float32).tobytes()),
    "pixel below 0": ("UINT8", (1, 2, 5, 3), [-1] * 30),
    "pixel above 255": ("UINT8", (1, 2, 5, 3), [256] * 30),
    "pixel between": ("UINT8", (1, 2, 5, 3), [0.5] * 30),
    "pixel in words": ("UINT8", (1, 2, 5, 3), ["1"] * 30),
    "not base64": ("BYTES", (1,), ["no base64!"]),
    "base64 cut short": ("BYTES", (1,), ["aGk"]),
    "base64 beyond ASCII": ("BYTES", (1,), ["ä"]),
    "string that is a number": ("BYTES", (1,), [7]),
    "string without its length": ("BYTES", (1,), b"\x01"),
    "string shorter than its length": ("BYTES", (1,), struct.pack("<I", 9) + b"short"),
    "length near the end of 32 bits": ("BYTES", (1,), struct.pack("<I", 2**32 - 1) + b"short"),
    "one string too few": ("BYTES", (2,), prefixed([b"one"])),
    "one string too many": ("BYTES", (1,), prefixed([b"one", b"two"])),
    "bytes after the last string": ("BYTES", (1,), prefixed([b"one"]) + b"!"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_does_not_fit_is_malformed(lie: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        decode(*LIES[lie])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("datatype", "shape"),
    [
        ("BYTES", (5,)),
        ("BYTES", (HUGE, 1)),
        ("FP32", (HUGE, 3, 2, 3)),
        ("UINT8", (5, 1, 1, 3)),
        ("UINT8", (1, 11, 10, 3)),
        ("UINT8", (1, HUGE, HUGE, 3)),
    ],
)
def test_what_is_over_a_limit_is_too_large_and_costs_nothing(datatype: str, shape: tuple[int, ...]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            decode(datatype, shape, b"")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_output_is_written_flat_and_little_endian() -> None:
    table = Output("p", "FP32", (2, 2), np.array([[1, 2], [3, 0.5]], np.float32))
    assert list(table.elements()) == [1, 2, 3, 0.5]
    assert table.to_bytes() == struct.pack("<4f", 1, 2, 3, 0.5)
    texts = Output("label", "BYTES", (2,), ["ä".encode(), b""])
    assert texts.elements() == ["ä", ""]
    assert texts.to_bytes() == b"\x02\x00\x00\x00\xc3\xa4\x00\x00\x00\x00"
