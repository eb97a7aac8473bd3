"""The structure that docs/architecture.md describes: who may import whom, and how large a module may be."""

import ast
import re
import runpy
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STRUCTURE = runpy.run_path(str(ROOT / "scripts" / "architecture_page.py"))
MODULES: dict[str, Path] = STRUCTURE["MODULES"]
imports, top = STRUCTURE["imports"], STRUCTURE["top"]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ORDER: list[str] = STRUCTURE["packages"]()
PATHS = {
    "From a file to a ready service": 16,
    "From a file to a packed model": 15,
    "From a request to its answer": 15,
    "From images to a data set": 10,
}
"""The headings of the paths, and how many files each may take."""

MAY_IMPORT_TORCH = {
    "engines.exported_graph",  # a type
    "engines.grad_cam",
    "engines.openvino_graph",  # to convert a module
    "engines.torch_engine",
    "engines.traced_graph",  # to trace a module
    "files.checkpoint",
    "files.tensors",
    "files.weights",
    "loading.settle",  # to run what golden images are compared with
    "planning.candidates",  # to ask for CUDA, and a type
}
"""Beside the zoos."""

LARGEST = 400
"""Lines of a module."""
SMALLEST = 40
"""Lines, below which a module that only one other uses belongs into that one."""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = {
    re.split(r"[\[<>=;]", requirement)[0].strip()
    for group in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in group
}


def _libraries(path: Path) -> set[str]:
    """Top-level names of all that the file at `path` imports, at any depth of its code."""
    return {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        )
    }


def _steps(heading: str) -> list[tuple[str, str]]:
    """Module and name of each step of a path."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [(module, name) for module, name in re.findall(r"`([\w.]+):(\w+)`", section)]


def test_the_generated_parts_of_the_page_are_the_codes() -> None:
    assert STRUCTURE["page"]() == PAGE, "run `make docs`"


def test_every_package_is_in_the_table_and_every_row_is_a_package() -> None:
    assert sorted(ORDER) == sorted({top(module) for module in MODULES})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_package_and_those_above(module: str) -> None:
    below = {
        other
        for other in imports(module)
        if top(other) != top(module) and ORDER.index(top(other)) > ORDER.index(top(module))
    }
    assert not below, f"{module} imports {sorted(below)}"


def test_http_and_grpc_do_not_know_each_other() -> None:
    drawn = STRUCTURE["arrows"]()
    assert "grpc" not in drawn["http"]
    assert "http" not in drawn["grpc"]


def test_no_modules_import_each_other_in_a_circle() -> None:
    rest = {module: imports(module) for module in MODULES}
    while free := [module for module, needed in rest.items() if not needed & rest.keys()]:
        for module in free:
            del rest[module]
    assert not rest, f"in a circle, or on one: {sorted(rest)}"


@pytest.mark.parametrize("module", [name for name in MODULES if top(name) != "zoos"])
def test_only_zoos_engines_and_what_builds_packs_name_torch(module: str) -> None:
    if module not in MAY_IMPORT_TORCH:
        assert not _libraries(MODULES[module]) & {"torch", "torchvision"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_neither_too_large_nor_a_splinter(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LARGEST
    users = [other for other in MODULES if module in imports(other)]
    alone = MODULES[module].name == "__init__.py" or top(module) == "_compat"  # one module per library
    assert lines >= SMALLEST or len(users) != 1 or alone, f"{module} is only used by {users[0]}"


@pytest.mark.parametrize(("heading", "most"), PATHS.items())
def test_a_path_is_told_by_names_that_exist_in_few_files(heading: str, most: int) -> None:
    steps = _steps(heading)
    assert steps
    for module, name in steps:
        defined = {
            node.name
            for node in ast.parse(MODULES[module].read_text()).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        assert name in defined, f"there is no {name} in {module}"
    assert len({module for module, _ in steps}) <= most


def test_the_page_says_why_each_dependency_is_there() -> None:
    section = PAGE.partition("\n## Dependencies\n")[2]
    explained = {
        name for cell in re.findall(r"^\| (.+?) \|", section, re.MULTILINE) for name in cell.split(", ")
    }
    assert explained - {"library", "---"} == DECLARED


@pytest.mark.slow
def test_whatever_is_imported_is_declared() -> None:
    imported = set().union(*(_libraries(path) for path in MODULES.values()))
    providers = packages_distributions()
    undeclared = {
        name
        for name in imported - set(sys.stdlib_module_names) - {"pthserve", "google"}
        if not {provider.lower().replace("_", "-") for provider in providers[name]} & DECLARED
    }
    assert not undeclared
