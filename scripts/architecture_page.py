#!/usr/bin/env python3
"""The generated parts of docs/architecture.md: the drawing of the packages, and the list of the modules."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "service" / "pthserve"
PAGE = ROOT / "docs" / "architecture.md"


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    _name(path): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent.name != "protos" and _name(path) not in ("", "__main__")
}
"""Dotted name below `pthserve` to file; packages are among them, generated code is not."""


def top(module: str) -> str:
    """The package that `module` is in, or the module itself where it is in none."""
    return module.partition(".")[0]


@functools.cache
def imports(module: str) -> frozenset[str]:
    """The modules of pthserve that `module` imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "pthserve":
            package = (node.module or "").removeprefix("pthserve").lstrip(".")
            for alias in node.names:
                inner = f"{package}.{alias.name}".lstrip(".")
                found.add(inner if inner in MODULES else package)
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("pthserve.") for alias in node.names}
    return frozenset(found & MODULES.keys() - {module})


def packages() -> list[str]:
    """The packages and top-level modules, in the order of the page's table."""
    table = PAGE.read_text().partition("## Packages")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def arrows() -> dict[str, set[str]]:
    """Each package or top-level module to those that it imports from."""
    drawn: dict[str, set[str]] = {top(module): set() for module in MODULES}
    for module in MODULES:
        drawn[top(module)] |= {top(other) for other in imports(module)} - {top(module)}
    return drawn


def drawing() -> Iterator[str]:
    """A Mermaid flow chart of the packages. An arrow that follows from two others is left out."""
    drawn = arrows()

    reached: dict[str, set[str]] = {}
    for name in packages():  # those above are there already
        reached[name] = drawn[name].union(*(reached.get(other, ()) for other in drawn[name]))

    yield "```mermaid"
    yield "flowchart TD"
    everywhere = {name for name in drawn if not drawn[name]} - {"images", "files"}
    for name in packages():
        for other in sorted(drawn[name] - everywhere):
            if not any(other in reached.get(between, ()) for between in drawn[name] - {other}):
                yield f"    {name} --> {other}"
    yield "```"
    yield ""
    names = ", ".join(f"`{name}`" for name in sorted(everywhere))
    yield f"{names} are left out: they import nothing of pthserve."


def listing() -> Iterator[str]:
    """A table of the modules, by package, with the first line of each module's docstring."""
    order = packages()
    yield "| module | story |"
    yield "|---|---|"
    for module in sorted(MODULES, key=lambda name: (order.index(top(name)), name)):
        doc = ast.get_docstring(ast.parse(MODULES[module].read_text())) or ""
        if "." in module or MODULES[module].name != "__init__.py":
            yield f"| `{module}` | {doc.partition(chr(10))[0].replace('|', chr(92) + '|')} |"


def page() -> str:
    """The page with its generated parts written anew."""
    text = PAGE.read_text()
    for name, lines in (("drawing", drawing()), ("modules", listing())):
        begin, end = f"<!-- {name}: `make docs` writes this -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "\n".join(lines) + "\n" + end + after
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
