"""Draft: a `model.yaml` with all that was inferred about a model, for its owner to go through.

What the file leaves no doubt about is stated. What was assumed is written as comments, with the alternatives:
as long as nobody has stated it, `serve` goes on to warn about it.
"""

import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pthserve.certainty import Inferred, Origin
from pthserve.errors import CardError
from pthserve.files import card, documents, regular_files
from pthserve.files.card_fields import preprocessing_fields
from pthserve.loading.load import Built

WIDTH = 110

_HEAD = (
    "Written by `pthserve init`. Lines that begin with `#` state what was assumed, and what else it may be. "
    "Remove the `#` from the line that is right, and delete the others. As long as a value is not stated, "
    "`pthserve serve` warns about it."
)
_ADVICE = {
    "preprocessing": "`pthserve compare` finds the right lines from the function that prepared your images.",
    "labels": "A list, a text file with one label per line, or a JSON file such as `class_to_idx`.",
}


def draft(built: Built, stated: Mapping[str, Any]) -> str:
    """The lines of a card for `built`, but for the fields that are `stated` already."""
    fields = {
        "name": built.card.name,
        "version": built.card.version,
        "weights": os.path.relpath(built.card.weights, built.card.folder),
    }
    blocks = [] if stated else [_comment(_HEAD)]
    if left := {key: value for key, value in fields.items() if key not in stated}:
        blocks.append("".join(_yaml({key: value}) for key, value in left.items()))
    alternatives = {
        choice.subject: [option.setting for option in choice.options[1:]]
        for choice in built.architecture.choices
    }
    for value in built.inferred:
        block = "".join(_block(value, built, stated, alternatives.get(value.subject, [])))
        if block:
            blocks.append(block)
    return "\n".join(blocks)


def write(built: Built, output: Path | None, *, force: bool) -> Path:
    """Write the draft into `output`, by default `model.yaml` beside the weights; returns the file.

    An existing file is kept, and only with `force` what it does not state is put behind its lines. It is
    replaced in one step.

    Raises:
        CardError: There is a file already and no `force`, it describes other weights, or it cannot be
            written.
    """
    file = output or built.card.file
    text = ""
    stated: Mapping[str, Any] = {}
    if file.exists() or file.is_symlink():
        if not force:
            raise CardError(f"{file}: exists already; --force keeps its lines and adds what is missing")
        text, stated = _existing(file, built)
    try:
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(text + draft(built, stated), "utf-8")
        return temporary.replace(file)
    except OSError as error:
        raise CardError(f"{file}: cannot be written: {error.strerror}") from error


def _existing(file: Path, built: Built) -> tuple[str, Mapping[str, Any]]:
    """The text of a card that is there, and what it states."""
    try:
        text = regular_files.read(file, card.BYTES).decode("utf-8-sig")
        values = documents.parse_yaml(text) or {}
    except (OSError, ValueError) as error:
        raise CardError(f"{file}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CardError(f"{file}: must be a mapping of fields, such as `name: digits`")
    weights = file.parent / str(values["weights"]) if "weights" in values else None
    if weights is not None and weights.resolve() != built.card.weights.resolve():
        raise CardError(f"{file}: describes other weights, {weights.name}; use --output")
    return (text.rstrip() + "\n\n" if text.strip() else ""), values


def _block(
    value: Inferred, built: Built, stated: Mapping[str, Any], alternatives: list[str]
) -> Iterator[str]:
    """The lines on one value that was inferred."""
    key = value.setting.partition(":")[0]
    setting = value.setting
    if value.subject == "preprocessing":
        setting = _yaml({"preprocessing": preprocessing_fields(built.spec)}).rstrip()
    if value.uncertain:
        origin = "the architecture's default" if value.origin is Origin.DEFAULT else "assumed"
        yield _comment(f"{value.subject.capitalize()}, {origin}: {value.value}.")
        if value.subject in _ADVICE:
            yield _comment(_ADVICE[value.subject])
        for line in setting.splitlines():
            yield f"# {line}\n"
        if alternatives:
            yield _comment("Alternatives:")
        for other in alternatives:
            yield f"# {other}\n"
    elif setting and key not in stated and value.origin is not Origin.CARD:
        yield f"{setting}  # {_WORDS[value.origin]}\n"


_WORDS = {Origin.FILE: "from the file", Origin.GOLDEN: "settled by the golden images"}


def _comment(text: str) -> str:
    lines = textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def _yaml(values: Mapping[str, Any]) -> str:
    """One field in block style, with its lists in one line."""
    nested = any(isinstance(value, dict) for value in values.values())
    style = None if nested else False
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=style)
