"""Card values: the types of values in `model.yaml`, such as text, numbers and sizes, with their limits."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from pthserve.files.labels import LabelFile, of_card, short
from pthserve.text import whole

MAX_SIDE = 4096
"""Maximum width or height in pixels."""
MAX_WORD = 200
"""Maximum number of characters of a name or a version."""
MAX_GOLDEN = 1000
"""Maximum number of golden images of a card: all of them are in memory at the same time."""
MAX_STATED = 10_000
"""Maximum number of values that a golden image states, and of outputs that a card names."""


def _text(value: object) -> str:
    """Return text, or an integer as text; other values that YAML makes of unquoted text are not exact."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"must be text, but YAML reads it as {short(value)}; put it in quotes")  # noqa: TRY004
    if not value:
        raise ValueError("must not be empty")
    return whole(value)


def _word(value: object) -> str:
    """Return text that may be used in URLs, metrics and the log."""
    text = _text(value)
    if not text.isprintable() or len(text) > MAX_WORD:
        raise ValueError(f"must have at most {MAX_WORD} characters, all of them printable")
    return text


def _name(value: object) -> str:
    text = _word(value)
    if "/" in text:
        raise ValueError("must not contain a slash, since it is part of URLs")
    return text


def _sha256(value: object) -> str:
    text = _text(value).lower()
    if re.fullmatch("[0-9a-f]{64}", text) is None:
        raise ValueError("must be 64 hexadecimal digits")
    return text


def _sides(value: object) -> int | tuple[int, int]:
    match value:
        case int(side) if _is_side(side):
            return side
        case [int(height), int(width)] if _is_side(height) and _is_side(width):
            return height, width
    raise ValueError(f"must be a number of pixels from 1 to {MAX_SIDE}, or [height, width]")


def _is_side(value: int) -> bool:
    return not isinstance(value, bool) and 1 <= value <= MAX_SIDE


def _numbers(value: object) -> object:
    """Return a list of numbers, with `null` for unknown ones, or numbers by name; one number is a list."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, list | tuple | dict) and 0 < len(value) <= MAX_STATED:
        return {_text(key): number for key, number in value.items()} if isinstance(value, dict) else value
    raise ValueError(f"must be a list of numbers, or numbers by name, 1 to {MAX_STATED} of them")


def _golden_labels(value: object) -> object:
    if not isinstance(value, list | tuple) or len(value) > MAX_STATED:
        raise ValueError(f"must be a list of labels or their numbers, at most {MAX_STATED}")
    return tuple(
        one if isinstance(one, int) and not isinstance(one, bool) and one >= 0 else _text(one)
        for one in value
    )


Text = Annotated[str, PlainValidator(_text)]
Word = Annotated[str, PlainValidator(_word)]
Name = Annotated[str, PlainValidator(_name)]
Sha256 = Annotated[str, PlainValidator(_sha256)]
Sides = Annotated[int | tuple[int, int], PlainValidator(_sides)]
Labels = Annotated[LabelFile | tuple[str, ...], PlainValidator(of_card)]
Activation = Literal["relu", "gelu", "tanh", "silu", "leaky_relu", "elu", "hardswish", "sigmoid", "none"]
Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Numbers = Annotated[
    tuple[Finite | None, ...] | dict[str, Finite],
    BeforeValidator(_numbers),
]
GoldenLabels = Annotated[tuple[int | str, ...], BeforeValidator(_golden_labels)]
Channels = BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value])


class Section(BaseModel):
    """A mapping of fields in a card."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
