"""The house: who may import whom. The floors are read from docs/architecture.md."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "service" / "pthserve"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
FLOORS = {
    name: int(floor)
    for floor, names in re.findall(r"^\| (-?\d+) \| (.+?) \|", PAGE, re.MULTILINE)
    for name in re.findall(r"`([\w.]+)`", names)
}
GENERATED = {"inference_pb2", "inference_pb2_grpc"}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    _name(path): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stat().st_size and path.parent != PACKAGE / "protos" and _name(path)
}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = {
    re.split(r"[\[<>=;]", requirement)[0].strip()
    for group in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in group
}


def _packages(path: Path) -> set[str]:
    """Top-level names of all that the file at `path` imports, at any depth of its code."""
    return {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        )
    }


def _imports(path: Path) -> set[str]:
    """Names, inside the package, of the modules that the file at `path` imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pthserve":
            module = node.module.removeprefix("pthserve").lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                found.add(inner if inner in MODULES else module)
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("pthserve.")
                for alias in node.names
                if alias.name.startswith("pthserve.")
            }
    return found & MODULES.keys()


def test_every_module_stands_on_a_floor_and_every_floor_has_its_module() -> None:
    assert MODULES.keys() == FLOORS.keys()


def test_the_page_says_why_each_dependency_is_there() -> None:
    section = PAGE.partition("\n## What it rests on\n")[2]
    explained = {
        name for cell in re.findall(r"^\| (.+?) \|", section, re.MULTILINE) for name in cell.split(", ")
    }
    assert explained - {"library", "---"} == DECLARED


def test_whatever_is_imported_is_declared() -> None:
    imported = set().union(*(_packages(path) for path in PACKAGE.rglob("*.py")))
    providers = packages_distributions()
    undeclared = {
        name
        for name in imported - set(sys.stdlib_module_names) - {"pthserve", "google"}
        if not {provider.lower().replace("_", "-") for provider in providers[name]} & DECLARED
    }
    assert not undeclared


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_floors_below(module: str) -> None:
    above = {name for name in _imports(MODULES[module]) if FLOORS[name] >= FLOORS[module]}
    assert not above, f"{module} (floor {FLOORS[module]}) imports {sorted(above)}"


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("model")])
def test_only_the_model_package_names_torch(module: str) -> None:
    assert not _packages(MODULES[module]) & {"torch", "torchvision"}
