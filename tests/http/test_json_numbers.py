"""Skeleton: what is cut out and what is left are the JSON that it was; and what is left is little."""

import json
import random
from typing import Any

import pytest

from pthserve.errors import MalformedRequest, TooLarge
from pthserve.http.json_numbers import CUT, MAX_BYTES, MAX_QUOTES, Skeleton
from pthserve.inference_protocol.bounds import MAX_TEXT


def restored(text: str | bytes) -> Any:
    """The JSON in `text`, by way of a skeleton."""
    skeleton = Skeleton(text if isinstance(text, bytes) else text.encode())

    def put_back(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {
            "data" if name == CUT else name: json.loads(cut(value)) if name == CUT else value
            for name, value in pairs
        }

    def cut(index: int) -> bytes:
        numbers = skeleton.numbers[index]
        return numbers.json[numbers.start : numbers.end]

    def uncut(value: Any) -> Any:
        if isinstance(value, dict):
            return {skeleton.string(name): uncut(part) for name, part in value.items()}
        if isinstance(value, list):
            return [uncut(part) for part in value]
        return skeleton.string(value) if isinstance(value, str) else value

    whole = uncut(json.loads(skeleton.text, object_pairs_hook=put_back))
    skeleton.check()
    return whole


def made(source: random.Random, depth: int = 0) -> Any:
    """JSON of every kind, with names and strings that look like something else."""
    words = (
        "data",
        "data",
        "data",
        "long" * MAX_TEXT,
        '"data": [',
        "\\",
        '\\"',
        "}",
        "]",
        "[1,2]",
        "ä",
        "\n",
        "",
        'x"',
        "\\\\",
    )
    kind = source.randrange(4 if depth < 3 else 2)
    if kind == 0:
        return source.choice((source.random(), source.randrange(-9, 9), True, False, None))
    if kind == 1:
        return "".join(source.choices(words, k=source.randrange(4)))
    if kind == 2:
        return [made(source, depth + 1) for _ in range(source.randrange(4))]
    value = {source.choice(words): made(source, depth + 1) for _ in range(source.randrange(5))}
    if "data" in value and source.random() < 0.5:
        value["data"] = source.choice(
            ([], [1], [[1, -2.5], [3e9, 4]], [[], []], [[1], "x"], [1, {"data": [2]}])
        )
    return value


@pytest.mark.parametrize("seed", range(4))
def test_cut_and_left_are_the_whole(seed: int) -> None:
    source = random.Random(seed)
    cuts = 0
    for _ in range(200):
        value = [made(source) for _ in range(10)]
        text = json.dumps(value, ensure_ascii=source.random() < 0.5, indent=source.choice((None, 1)))
        cuts += len(Skeleton(text.encode()).numbers)
        assert restored(text) == value, text
    assert cuts > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "left", "numbers"),
    [
        ('{"data":[1,2]}', '{"CUT":0}', ["[1,2]"]),
        ('{"data" : [[1],[2]] , "a":"b"}', '{"CUT":0 , "a":"b"}', ["[[1],[2]]"]),
        ('{"inputs":[{"data":[1]},{"data":[]}]}', '{"inputs":[{"CUT":0},{"CUT":1}]}', ["[1]", "[]"]),
        ('{"shape":[1,2]}', '{"shape":[1,2]}', []),
        ('{"data":["a","b"]}', '{"data":["a","b"]}', []),
        ('{"data":[1,"b"]}', '{"data":[1,"b"]}', []),
        ('["data",[1]]', '["data",[1]]', []),
        ('{"a":"data","shape":[1]}', '{"a":"data","shape":[1]}', []),
        ('{"\\"data":[1]}', '{"\\"data":[1]}', []),
        ('{"data":[1,2', '{"data":[1,2', []),
        ("", "", []),
    ],
)
def test_numbers_are_cut_out_where_they_are_called_data(text: str, left: str, numbers: list[str]) -> None:
    skeleton = Skeleton(text.encode())
    assert skeleton.text.decode() == left.replace("CUT", CUT)
    assert [cut.json[cut.start : cut.end].decode() for cut in skeleton.numbers] == numbers


@pytest.mark.slow
def test_strings_and_numbers_may_be_as_long_as_they_like() -> None:
    value = {"data": ["A/" * 10**6], "more": {"data": [0] * 10**6}}
    assert restored(json.dumps(value)) == value
    assert restored(json.dumps(value).replace("/", "\\/")) == value


@pytest.mark.parametrize("text", ["A" * MAX_TEXT, "\u00e4" * (MAX_TEXT // 2), "", '\\"'])
def test_a_short_string_is_left_where_it_is(text: str) -> None:
    skeleton = Skeleton(json.dumps({"id": text}, ensure_ascii=False).encode())
    skeleton.check()
    assert skeleton.strings == []
    assert json.loads(skeleton.text) == {"id": text}


def test_a_long_string_that_is_not_put_back_is_malformed() -> None:
    skeleton = Skeleton(json.dumps({"id": "A" * (MAX_TEXT + 1)}).encode())
    assert len(skeleton.text) < 100
    with pytest.raises(MalformedRequest, match=f"more than {MAX_TEXT} bytes"):
        skeleton.check()


@pytest.mark.parametrize("text", [b"\xff" * 2000, b"\\x" * 1000])
def test_a_long_string_that_is_none_is_malformed(text: bytes) -> None:
    skeleton = Skeleton(b'{"data": ["' + text + b'"]}')
    with pytest.raises(MalformedRequest, match="cannot be parsed"):
        skeleton.string(json.loads(skeleton.text)["data"][0])


@pytest.mark.parametrize(
    "text",
    [
        b"[" * (MAX_BYTES + 1),
        b" " * (MAX_BYTES + 1),
        b'{"inputs": [' + b"{}," * MAX_BYTES + b"{}]}",
        b'{"shape": [' + b"1," * MAX_BYTES + b"1]}",
        b'{"data": {' + b"[]," * MAX_BYTES + b"[]}}",
        b"[" + b'"",' * MAX_QUOTES + b"0]",
        b'"' + b'\\"' * MAX_QUOTES + b'"',
        b'{"data": [' + b'{"data": [1]},' * MAX_QUOTES + b"0]}",
    ],
    ids=["brackets", "spaces", "objects", "shape", "data in braces", "strings", "quotes", "cuts"],
)
def test_more_than_a_request_needs_is_too_large(text: bytes) -> None:
    with pytest.raises(TooLarge):
        Skeleton(text)


def test_a_string_of_backslashes_is_not_counted_for_ever() -> None:
    with pytest.raises(MalformedRequest):
        Skeleton(b'"' + b"\\" * 10**6 + b'"')
