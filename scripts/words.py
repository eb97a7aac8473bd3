#!/usr/bin/env python3
"""build/words.txt: every text that a user of pthserve may read, for a proofreader.

The settings table, the help of each command, and from the source each error message and each line of the log.
What a message fills in stands as code between braces.
"""

import ast
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner

from pthserve import errors
from pthserve.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "service" / "pthserve"
OUTPUT = ROOT / "build" / "words.txt"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
SPOKEN = {
    *(
        "BadParameter",
        "ConnectionFailed",
        "PydanticCustomError",
        "UsageError",
        "ValueError",
        "_Retry",
        "echo",
    ),
    *(name for name, value in vars(errors).items() if isinstance(value, type)),
}
"""Calls whose text reaches a person."""


def texts(expression: ast.expr) -> Iterator[str]:
    """The texts in an argument: of each branch, where there are several."""
    match expression:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr():
            yield "".join(_piece(part) for part in expression.values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield "".join("".join(texts(side)) or f"{{{ast.unparse(side)}}}" for side in (left, right))
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts(body)
            yield from texts(orelse)


def _piece(part: ast.expr) -> str:
    if isinstance(part, ast.FormattedValue):
        return f"{{{ast.unparse(part.value)}}}"
    return str(part.value) if isinstance(part, ast.Constant) else ""


def messages(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, kind and text of each error message and log line in the file at `path`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id=name) if name in SPOKEN:
                kind = name
            case ast.Attribute(attr=name) if name in SPOKEN or name.endswith("Error"):
                kind = name
            case ast.Attribute(value=ast.Name(id="log" | "logger" | "logging"), attr=name) if name in LEVELS:
                kind = f"log.{name}"
            case _:
                continue
        for argument in node.args:
            for text in texts(argument):
                yield node.lineno, kind, text


def help_of(*command: str) -> str:
    """What `pthserve COMMAND --help` prints."""
    shown = CliRunner().invoke(app, [*command, "--help"], prog_name="pthserve", env={"COLUMNS": "120"})
    return "\n".join(line.rstrip() for line in shown.output.strip().splitlines()) + "\n"


def words() -> str:
    """The whole file."""
    parts = [runpy.run_path(str(ROOT / "scripts" / "settings_table.py"))["table"]()]
    parts += [f"# pthserve {name}\n\n{help_of(*name.split())}" for name in ("", *COMMANDS)]
    for path in sorted(PACKAGE.rglob("*.py")):
        if found := sorted(messages(path)):
            lines = "".join(f"{line}: {kind}: {text}\n" for line, kind, text in found)
            parts.append(f"# {path.relative_to(PACKAGE)}\n\n{lines}")
    return "\n".join(parts)


if __name__ == "__main__":
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(words())
    sys.stderr.write(f"{OUTPUT.relative_to(ROOT)}\n")
