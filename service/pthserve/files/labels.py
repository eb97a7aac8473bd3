"""Labels: the names of a model's classes in the order of its outputs, out of the forms that they are kept in.

A list or lines of text are in that order. A mapping may be of index to label, as in `id2label` of Hugging
Face's config.json, Keras' `imagenet_class_index.json` and TorchServe's `index_to_name.json`; or of label to
index, as in `class_to_idx` of torchvision's ImageFolder. Where the labels are numbers too, it may be either,
and is not guessed.
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
"""What a mapping may be of: label to index, and index to label."""

_BY_NAME = {
    **dict.fromkeys(
        (CLASS_TO_IDX, "class_to_index", "class2idx", "label2id", "label_to_id", "name_to_index"),
        CLASS_TO_IDX,
    ),
    **dict.fromkeys((IDX_TO_CLASS, "index_to_class", "idx2class", "id2label", "index_to_name"), IDX_TO_CLASS),
}
"""Names of files and keys that say of what a mapping is."""
_LISTS = ("classes", "CLASSES", "names", "class_names", "labels", "label_names", "categories")
_KEYS = ("id2label", IDX_TO_CLASS, "index_to_name", CLASS_TO_IDX, "label2id", *_LISTS)
"""Keys under which labels lie in documents and checkpoints, the surest first."""
_INSIDE = ("", "meta", "hparams", "hyper_parameters", "config", "args", "train_args", "model_args", "cfg")
"""Keys of a checkpoint under which such keys lie."""
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
"""Most digits of a class's number."""
_FORMS = (
    "a list of labels, or a mapping of index to label or label to index, by itself or under one of the keys "
    f"{', '.join(_KEYS)}"
)


@dataclass(frozen=True, slots=True)
class LabelFile:
    """The file that a card names, and of what kind the mapping in it is, where the card says so."""

    file: str
    kind: str | None = None


def of_card(value: object) -> tuple[str, ...] | LabelFile:
    """What `labels` says in a card; raises ValueError."""
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
    """Labels in the order of the classes.

    language: in which the value was written, for messages. kind: of what a mapping is, where it is known.
    depth: mappings that they may lie within. Raises ValueError.
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
    """Index and label of a category, as COCO writes one."""
    if isinstance(value, dict):
        index = next((value[key] for key in _INDEX_COLUMNS if key in value), None)
        label = next((value[key] for key in _LABEL_COLUMNS if key in value), None)
        if label is not None:
            return index, label
    raise ValueError(f"must be {_FORMS}")


def _of_rows(rows: list[tuple[Any, Any]], language: str) -> tuple[str, ...]:
    """Labels of rows of index and label; the index may be missing in all of them."""
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
    """Of what a mapping can be: of both where its keys and its values number the classes, each otherwise."""
    by_key, by_value = _numbers(value), _numbers(value.values())
    if by_key is None or by_value is None:
        return (CLASS_TO_IDX,) if by_key is None else (IDX_TO_CLASS,)
    every = list(range(len(value)))
    if sorted(by_key) != every:
        return (CLASS_TO_IDX,)
    # JSON has text for labels, and numbers for indices.
    if sorted(by_value) != every or by_key == by_value or all(isinstance(one, str) for one in value.values()):
        return (IDX_TO_CLASS,)
    return KINDS


def _numbers(values: Iterable[object]) -> list[int] | None:
    """`values` as the numbers of classes; None where one is something else."""
    values = list(values)
    return [int(value) for value in values] if all(map(_is_number, values)) else None  # type: ignore[call-overload]


def _is_number(value: object) -> bool:
    """Whether `value`, or the text of it, is the number of a class."""
    if isinstance(value, int):  # not `str` at once, which refuses a number of many digits
        return not isinstance(value, bool) and 0 <= value < 10**_DIGITS
    return isinstance(value, str) and len(value) <= _DIGITS and value.isdecimal()


def _numbered(pairs: Iterable[tuple[Any, Any]], language: str) -> tuple[str, ...]:
    """The labels of pairs of index and label, in the order of the indices."""
    pairs = list(pairs)
    by_index = {int(index): _label(label, language) for index, label in pairs if _is_number(index)}
    if sorted(by_index) != list(range(len(pairs))):
        raise ValueError(f"must use the class indices 0 to {len(pairs) - 1}")
    return tuple(by_index[index] for index in range(len(pairs)))


def _label(value: object, language: str) -> str:
    """One label; Keras has a pair of WordNet's number and the label."""
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
    """`value` as a message names it."""
    match value:
        case dict():
            return "a mapping"
        case list() | tuple() | set():
            return "a list"
    return quoted(repr(value))


# --- files


def read(name: str, text: str, kind: str | None = None) -> tuple[str, ...]:
    """The labels in a file of this name and text.

    kind: of what a mapping in it is; None: as its name says, or its content.
    Raises ValueError.
    """
    path = PurePath(name)
    kind = kind or _BY_NAME.get(path.stem)
    return _READERS.get(path.suffix.lower(), _lines)(text, kind)


def _json(text: str, kind: str | None) -> tuple[str, ...]:
    from pthserve.files import documents

    return parse(documents.parse_json(text), "JSON", kind)


def _yaml(text: str, kind: str | None) -> tuple[str, ...]:
    from pthserve.files import documents  # with PyYAML, which a packed model needs nothing of

    return parse(documents.parse_yaml(text), "YAML", kind)


def _lines(text: str, _kind: str | None) -> tuple[str, ...]:
    """A label a line; the numbers before them are left out where they count the lines from 0 or 1."""
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
    """Columns of labels and perhaps of their indices, named in the first row or told by their values."""
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
    """Where the label and its index stand, and the first row of them."""
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
"""By the ending of the file's name; of any other there is a label a line."""


# --- checkpoints


def of_metadata(metadata: Mapping[str, Any], count: int) -> tuple[tuple[str, ...], str] | None:
    """The labels of `count` classes that a checkpoint holds beside its tensors, and their key; or None."""
    for place in _INSIDE:
        held = metadata.get(place) if place else metadata
        if not isinstance(held, Mapping):
            continue
        for key in _KEYS:
            if not isinstance(value := held.get(key), dict | list):
                continue
            try:
                found = parse(value, "the checkpoint", _BY_NAME.get(key))
            except ValueError:
                continue
            if len(found) == count:
                return found, f"{place}.{key}".lstrip(".")
    return None


def are_placeholders(labels: Sequence[str]) -> bool:
    """Whether they are those that transformers makes up where nobody named the classes."""
    return all(label == f"LABEL_{number}" for number, label in enumerate(labels))
