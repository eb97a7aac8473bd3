"""A callable that a card names: imported where it is allowed, and only what its module defines is called."""

import sys
from pathlib import Path

import pytest

from pthserve.errors import ArchitectureError
from pthserve.zoos import own

PACKAGE = """
import os, subprocess, functools
from os import system
from subprocess import Popen
from torch import nn
from torch.nn import Linear
from .inner import Inner, make as remade

class Net(nn.Module):
    other = os

    @classmethod
    def from_name(cls): return cls()

    @staticmethod
    def made(): return Net()

class Other:
    def __init__(self): raise AssertionError("was called")

    @classmethod
    def make(cls): return Net()

def make(): return Net()

made = make()
bound = made.forward
partial = functools.partial(os.system, "true")
call = subprocess.run
"""


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `theirs` with a module `inner`, and one called `theirs_too`."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "theirs" / "inner.py").write_text(
        "from torch import nn\nclass Inner(nn.Module): ...\ndef make(): return Inner()\n"
    )
    (tmp_path / "theirs_too.py").write_text("raise AssertionError('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    "name",
    [
        *("theirs:Net", "theirs:Net.from_name", "theirs:Net.made", "theirs:make", "theirs:Other.make"),
        *("theirs:Inner", "theirs:remade", "theirs.inner:make"),
    ],
)
def test_what_an_allowed_package_defines_is_found(name: str) -> None:
    assert callable(own.resolve(name, {"theirs"}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("theirs:os.system", "must be a class, a function, or Class.method of the module itself"),
        ("theirs:inner.make", "of the module itself"),
        ("theirs:nn.Linear", "of the module itself"),
        ("theirs:Net.other.system", "of the module itself"),
        ("theirs:made.forward", "of the module itself"),
        ("theirs:system", "must be an nn.Module, or a function"),
        ("theirs:Popen", "must be an nn.Module, or a function"),
        ("theirs:Other", "must be an nn.Module, or a function"),
        ("theirs:partial", "must be an nn.Module, or a function"),
        ("theirs:bound", "must be an nn.Module, or a function"),
        ("theirs:os", "must be an nn.Module, or a function"),
        ("theirs:call", "is defined in subprocess, which is not allowed"),
        ("theirs:Linear", "is defined in torch.nn.modules.linear, which is not allowed"),
        ("theirs:Net.load_state_dict", "is defined in torch.nn.modules.module"),
        ("theirs:", "AttributeError"),
        ("theirs:gone", "failed: AttributeError"),
    ],
)
def test_what_it_imports_or_holds_is_refused(name: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        own.resolve(name, {"theirs"})


@pytest.mark.parametrize(
    "name", ["os:system", "theirs_too:make", "their:x", "theirs:Net", ":x", "os.path:os.system"]
)
def test_nothing_is_imported_that_is_not_allowed(name: str) -> None:
    module = name.partition(":")[0]
    with pytest.raises(ArchitectureError, match=f"add --allow-code {module}"):
        own.resolve(name, {"theirs.inner", "the"})
    assert "theirs" not in sys.modules
    assert "theirs_too" not in sys.modules


def test_a_module_is_allowed_without_the_rest_of_its_package() -> None:
    assert callable(own.resolve("theirs.inner:make", {"theirs.inner"}))
    with pytest.raises(ArchitectureError, match="add --allow-code theirs "):
        own.resolve("theirs:make", {"theirs.inner"})
