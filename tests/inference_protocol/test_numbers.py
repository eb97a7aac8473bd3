"""Numbers: an array out of JSON is the one that a JSON parser would make, whatever its layout and size."""

import json
import tracemalloc

import numpy as np
import pytest

from pthserve.errors import MalformedRequest
from pthserve.inference_protocol import numbers
from pthserve.inference_protocol.numbers import PIECE, Kind, Text, read

FLOATS = np.random.default_rng(0).normal(0, 1e3, (4, 3, 50, 60)).astype(np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 80, 70, 3), np.uint8)


def parsed(text: str, shape: tuple[int, ...], kind: Kind) -> list[float]:
    json = f'{{"data": {text}}}'.encode()
    return Text(json, 9, len(json) - 1).read(shape, kind).tolist()


@pytest.mark.parametrize("indent", [None, 2], ids=["compact", "indented"])
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "nested"])
@pytest.mark.parametrize(("kind", "values"), [("f", FLOATS), ("B", PIXELS)], ids=["floats", "pixels"])
def test_an_array_of_many_pieces_comes_out_as_it_went_in(
    kind: Kind, values: np.ndarray, flat: bool, indent: int | None
) -> None:
    text = json.dumps((values.ravel() if flat else values).tolist(), indent=indent)
    assert len(text) > 3 * PIECE
    assert parsed(text, values.shape, kind) == values.ravel().tolist()


def test_any_number_of_json_is_read() -> None:
    assert parsed("[ 1,-0,2.5e0,1E+2,\n-1e-2,\t0.125 ]", (6,), "f") == pytest.approx(
        [1, 0, 2.5, 100, -0.01, 0.125]
    )
    assert parsed("[[0],[255]]", (2, 1), "B") == [0, 255]


@pytest.mark.parametrize("piece", [4, 5, 6, 8, 13, 100])
def test_where_it_is_cut_makes_no_difference(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(numbers, "PIECE", piece)
    values = [[[1, 25], [3, 4]], [[5, 6], [71, 8]], [[9, 10], [11, 12]]]
    assert parsed(json.dumps(values, separators=(",", ":")), (3, 2, 2), "B") == np.ravel(values).tolist()


@pytest.mark.parametrize("piece", [2, PIECE])
@pytest.mark.parametrize(
    "text",
    [
        "[1,2,3]",
        "[1,2,3,4,5]",
        "[]",
        "[[],[]]",
        "[[1,2],[3]]",
        "[[1,2,3],[4]]",
        "[[1],[2],[3],[4]]",
        "[1,2,[3,4]]",
        "[[1,2],3,4]",
        "[[[1,2],[3,4]]]",
        "[[1,2],[3,4]",
        "[1,2],[3,4]",
        "[[1,2][3,4]]",
        "[1[,2],[3,4]]",
        "[[1,2],[3,]4]",
        "[[1,2],[3,4],]",
        "[,1,2,3,4]",
        "[1,2,,3,4]",
        "[1 2,3,4]",
        "[1,2,3,04]",
        "[1,2,3,4.]",
        "[1,2,3,.4]",
        "[1,2,3,+4]",
        "[1,2,3,-]",
        "[1,2,3,1e]",
        "[1,2,3,NaN]",
        "[1,2,3,Infinity]",
        "[1,2,3,true]",
        "[1,2,3,null]",
        "[1,2,3,{}]",
        "[1,2,3,4]]",
        "[1,2,3,4]5",
        "[1,2,3,\u00a04]",
    ],
)
def test_what_is_no_array_of_the_shape_is_malformed(
    monkeypatch: pytest.MonkeyPatch, text: str, piece: int
) -> None:
    monkeypatch.setattr(numbers, "PIECE", piece)
    for kind in ("f", "B"):
        with pytest.raises(MalformedRequest) as caught:
            parsed(text, (2, 2), kind)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["[1.0]", "[-1]", "[256]", "[1e2]", "[0.5]", "[99999999999999999999]"])
def test_a_pixel_is_a_whole_number_of_one_byte(text: str) -> None:
    with pytest.raises(MalformedRequest, match="from 0 to 255"):
        parsed(text, (1,), "B")


def test_an_element_that_fills_a_piece_is_malformed() -> None:
    for filling in (" " * 3 * PIECE, "1" * 3 * PIECE, "[" * 3 * PIECE):
        with pytest.raises(MalformedRequest):
            parsed(f"[{filling}, 1]", (2,), "f")


def test_elements_are_read_from_any_sequence() -> None:
    assert read(range(200), "B").tolist() == list(range(200))
    floats = [0.5] * (2 * PIECE + 1)
    assert read(floats, "f").tolist() == floats
    with pytest.raises(MalformedRequest):
        read([0] * (2 * PIECE) + [256], "B")


@pytest.mark.slow
def test_reading_takes_little_more_memory_than_text_and_array() -> None:
    values = np.tile(FLOATS, (5, 1, 1, 1))
    json_ = json.dumps(values.tolist()).encode()
    tracemalloc.start()
    try:
        Text(json_, 0, len(json_)).read(values.shape, "f")
        assert tracemalloc.get_traced_memory()[1] < 2 * values.nbytes + 32 * PIECE < len(json_)
    finally:
        tracemalloc.stop()
