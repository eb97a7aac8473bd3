"""Labels: read the names of a model's classes, in the order of its outputs, from various formats.

A list, or lines of text, must be in that order. A mapping may be from index to label, as in `id2label` of
Hugging Face's config.json, Keras' `imagenet_class_index.json` and TorchServe's `index_to_name.json`; or from
label to index, as in `class_to_idx` of torchvision's ImageFolder. If the labels are numbers, too, it could be
either, and is refused.
"""

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pthserve.text import quoted, whole

CLASS_TO_IDX, IDX_TO_CLASS = "class_to_idx", "idx_to_class"
KINDS = (CLASS_TO_IDX, IDX_TO_CLASS)
"""The two kinds of mapping: label to index, and index to label."""

_BY_NAME = {
    **dict.fromkeys(
        (CLASS_TO_IDX, "class_to_index", "class2idx", "label2id", "label_to_id", "name_to_index"),
        CLASS_TO_IDX,
    ),
    **dict.fromkeys((IDX_TO_CLASS, "index_to_class", "idx2class", "id2label", "index_to_name"), IDX_TO_CLASS),
}
"""Names of files and keys that imply the kind of a mapping."""
_LISTS = ("classes", "CLASSES", "names", "class_names", "labels", "label_names", "categories")
_KEYS = ("id2label", IDX_TO_CLASS, "index_to_name", CLASS_TO_IDX, "label2id", *_LISTS)
"""Keys of labels in documents and checkpoints, the most reliable first."""
_INSIDE = ("", "meta", "hparams", "hyper_parameters", "config", "args", "train_args", "model_args", "cfg")
"""Keys of a checkpoint whose values may contain such keys; "" is the checkpoint itself."""
_INDEX_COLUMNS = (
    "id",
    "index",
    "idx",
    "class_id",
    "class_index",
    "class_idx",
    "label_id",
    "number",
    "target",
)
_LABEL_COLUMNS = ("name", "label", "class", "class_name", "label_name", "category", "labels")
_NUMBERED = re.compile(r"(\d{1,9})\s*[\s:,;.)=-]\s*(\S.*)")
_DIGITS = 9
"""Maximum number of digits of a class index."""
_FORMS = (
    "a list of labels, or a mapping of index to label or label to index, by itself or under one of the keys "
    f"{', '.join(_KEYS)}"
)


@dataclass(frozen=True, slots=True)
class LabelFile:
    """The file of labels that a card names, and the kind of mapping in it if the card states it."""

    file: str
    kind: str | None = None


def of_card(value: object) -> tuple[str, ...] | LabelFile:
    """Return the field `labels` of a card; raises ValueError."""
    match value:
        case str() as file:
            return LabelFile(file)
        case {"file": str() as file, **rest}:
            kind = rest.pop("kind", None)
            if rest or kind not in (None, *KINDS):
                raise ValueError(f"beside `file`, only `kind` is allowed; it is {' or '.join(KINDS)}")
            return LabelFile(file, kind)
    return parse(value, "YAML")


def parse(value: object, language: str, kind: str | None = None, depth: int = 2) -> tuple[str, ...]:
    """Return the labels in `value`, in the order of the classes.

    Args:
        language: The format of the file, for error messages.
        kind: The kind of a mapping, one of KINDS, if it is known.
        depth: Maximum number of mappings that may enclose the labels.

    Raises:
        ValueError: There are no labels, or their order is not clear.
    """
    match value:
        case [dict(), *_]:
            return _of_rows([_row(one) for one in value], language)
        case [_, *_]:
            return tuple(_label(one, language) for one in value)
        case {}:
            for key in _KEYS if depth else ():
                if isinstance(inner := value.get(key), dict | list | tuple):
                    return parse(inner, language, kind or _BY_NAME.get(key), depth - 1)
            if value:
                return _of_mapping(value, language, kind)
    raise ValueError(f"must be {_FORMS}")


def _row(value: object) -> tuple[Any, Any]:
    """Return index and label of a category in the form of COCO."""
    if isinstance(value, dict):
        index = next((value[key] for key in _INDEX_COLUMNS if key in value), None)
        label = next((value[key] for key in _LABEL_COLUMNS if key in value), None)
        if label is not None:
            return index, label
    raise ValueError(f"must be {_FORMS}")


def _of_rows(rows: list[tuple[Any, Any]], language: str) -> tuple[str, ...]:
    """Return the labels of rows of index and label; the index may be None in all rows."""
    if all(index is None for index, _ in rows):
        return tuple(_label(label, language) for _, label in rows)
    return _numbered(rows, language)


def _of_mapping(value: Mapping[Any, Any], language: str, kind: str | None) -> tuple[str, ...]:
    kinds = (kind,) if kind else _possible_kinds(value)
    if len(kinds) > 1:
        raise ValueError(
            "could map indices to labels or labels to indices, since both are numbers; state which: "
            f"`labels: {{file: FILE, kind: {CLASS_TO_IDX}}}`, or {IDX_TO_CLASS}, or write a list of labels"
        )
    if kinds[0] == CLASS_TO_IDX:
        return _numbered([(index, label) for label, index in value.items()], language)
    return _numbered(value.items(), language)


def _possible_kinds(value: Mapping[Any, Any]) -> tuple[str, ...]:
    """Return the possible kinds of a mapping: both, if keys and values number the classes differently."""
    by_key, by_value = _numbers(value), _numbers(value.values())
    if by_key is None or by_value is None:
        return (CLASS_TO_IDX,) if by_key is None else (IDX_TO_CLASS,)
    every = list(range(len(value)))
    if sorted(by_key) != every:
        return (CLASS_TO_IDX,)
    # In JSON, labels are text and indices are numbers.
    if sorted(by_value) != every or by_key == by_value or all(isinstance(one, str) for one in value.values()):
        return (IDX_TO_CLASS,)
    return KINDS


def _numbers(values: Iterable[object]) -> list[int] | None:
    """Return `values` as class indices; None if one of them is not an index."""
    values = list(values)
    return [int(value) for value in values] if all(map(_is_number, values)) else None  # type: ignore[call-overload]


def _is_number(value: object) -> bool:
    """Return whether `value` is a class index, as a number or as text."""
    if isinstance(value, int):  # not converted to text first, which fails for a number with many digits
        return not isinstance(value, bool) and 0 <= value < 10**_DIGITS
    return isinstance(value, str) and len(value) <= _DIGITS and value.isdecimal()


def _numbered(pairs: Iterable[tuple[Any, Any]], language: str) -> tuple[str, ...]:
    """Return the labels of pairs of index and label, in the order of the indices."""
    pairs = list(pairs)
    by_index = {int(index): _label(label, language) for index, label in pairs if _is_number(index)}
    if sorted(by_index) != list(range(len(pairs))):
        raise ValueError(f"must use the class indices 0 to {len(pairs) - 1}")
    return tuple(by_index[index] for index in range(len(pairs)))


def _label(value: object, language: str) -> str:
    """Return one label; Keras writes it as a pair of WordNet id and label."""
    match value:
        case [str(), str() as label]:
            value = label
        case int() if not isinstance(value, bool):
            return str(value)
    if not isinstance(value, str):
        if language == "YAML":
            raise ValueError(f"must be text, but YAML reads it as {short(value)}; put it in quotes")
        raise ValueError(f"must be text, and {short(value)} is not")  # noqa: TRY004
    if not value:
        raise ValueError("must not be empty")
    return whole(value)


def short(value: object) -> str:
    """Return a short text for `value`, for an error message."""
    match value:
        case dict():
            return "a mapping"
        case list() | tuple() | set():
            return "a list"
    return quoted(repr(value))


# --- files


def read(name: str, text: str, kind: str | None = None) -> tuple[str, ...]:
    """Return the labels in a file.

    Args:
        name: The name of the file; its suffix determines the format.
        text: The content of the file.
        kind: The kind of a mapping in it, one of KINDS; None to infer it from the name or the content.

    Raises:
        ValueError: There are no labels, or their order is not clear.
    """
    path = PurePath(name)
    kind = kind or _BY_NAME.get(path.stem)
    return _READERS.get(path.suffix.lower(), _lines)(text, kind)


def _json(text: str, kind: str | None) -> tuple[str, ...]:
    from pthserve.files import documents

    return parse(documents.parse_json(text), "JSON", kind)


def _yaml(text: str, kind: str | None) -> tuple[str, ...]:
    from pthserve.files import documents  # imported only here: a packed model does not need PyYAML

    return parse(documents.parse_yaml(text), "YAML", kind)


def _lines(text: str, _kind: str | None) -> tuple[str, ...]:
    """Return one label per line, without the line numbers if the labels are numbered from 0 or 1."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    matches = [_NUMBERED.fullmatch(line) for line in lines]
    numbers = [int(match[1]) for match in matches if match]
    first = numbers[0] if numbers else None
    if len(lines) > 1 and first in (0, 1) and numbers == list(range(first, first + len(lines))):
        return tuple(_label(match[2], "text") for match in matches if match)
    if "" in lines:
        raise ValueError(f"line {lines.index('') + 1}: must not be empty; write one label per line")
    return tuple(_label(line, "text") for line in lines)


def _csv(text: str, _kind: str | None) -> tuple[str, ...]:
    """Return the labels in a table, whose columns are found by name in the first row, or by their values."""
    delimiter = max(",;\t", key=text[:4096].count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    except csv.Error as error:
        raise ValueError(f"cannot be parsed: {error}") from error
    rows = [row for row in rows if any(row)]
    label, index, first = _columns(rows)
    wanted = max(label, -1 if index is None else index)
    for number, row in enumerate(rows[first:], first + 1):
        if len(row) <= wanted:
            raise ValueError(f"row {number}: must have {wanted + 1} columns")
    return _of_rows([(None if index is None else row[index], row[label]) for row in rows[first:]], "CSV")


def _columns(rows: list[list[str]]) -> tuple[int, int | None, int]:
    """Return the column of the labels, that of the indices or None, and the first row with a label."""
    head = [cell.lower() for cell in rows[0]] if rows else []
    label = next((head.index(name) for name in _LABEL_COLUMNS if name in head), None)
    if label is not None:
        return label, next((head.index(name) for name in _INDEX_COLUMNS if name in head), None), 1
    if len(head) == 1:
        return 0, None, 0
    numeric = [
        place
        for place in range(len(head))
        if all(len(row) > place and _is_number(row[place]) for row in rows)
    ]
    if len(head) == 2 and len(numeric) == 1:
        return 1 - numeric[0], numeric[0], 0
    raise ValueError(
        f"must have a column named {', '.join(_LABEL_COLUMNS[:3])} or {_LABEL_COLUMNS[3]}, and may have "
        f"one named {', '.join(_INDEX_COLUMNS[:3])} or {_INDEX_COLUMNS[3]}; its first row is "
        f"{quoted(', '.join(head))}"
    )


_READERS: dict[str, Callable[[str, str | None], tuple[str, ...]]] = {
    ".json": _json,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".csv": _csv,
    ".tsv": _csv,
}
"""By the suffix of the file's name; all other files have one label per line."""


# --- checkpoints


def of_metadata(metadata: Mapping[str, Any], count: int) -> tuple[tuple[str, ...], str] | None:
    """Return the labels of `count` classes in the metadata of a checkpoint, and their key; or None."""
    for place in _INSIDE:
        held = metadata.get(place) if place else metadata
        if not isinstance(held, Mapping):
            continue
        for key in _KEYS:
            if not isinstance(value := held.get(key), dict | list):
                continue
            try:
                labels = parse(value, "the checkpoint", _BY_NAME.get(key))
            except ValueError:
                continue
            if len(labels) == count:
                return labels, f"{place}.{key}".lstrip(".")
    return None


def are_placeholders(labels: Sequence[str]) -> bool:
    """Return whether `labels` are the default ones of transformers, such as LABEL_0."""
    return all(label == f"LABEL_{number}" for number, label in enumerate(labels))
