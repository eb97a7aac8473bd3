"""Code: a callable that a card names, which runs only where whoever runs the command allows its module."""

import importlib
import inspect
from collections.abc import Callable, Collection
from typing import Any

from pthserve.errors import ArchitectureError


def is_code(architecture: str | None) -> bool:
    """Whether a card's `architecture` is code, `package.module:callable`, and no name of torchvision's."""
    return architecture is not None and ":" in architecture


def check(name: str, allowed: Collection[str]) -> None:
    """Raise ArchitectureError unless one of the packages or modules `allowed` has the module of `name` in it.

    Nothing is imported.
    """
    module = name.partition(":")[0]
    if not _is_in(module, allowed):
        raise ArchitectureError(
            f"the card names code, {name}, which runs only where you allow it: if you trust the module "
            f"{module}, add --allow-code {module} (or set PTHSERVE_ALLOW_CODE={module})"
        )


def resolve(name: str, allowed: Collection[str]) -> Callable[..., Any]:
    """The class, function or class method called `name`, which is defined in a module that is `allowed`.

    It is an `nn.Module`, a function, or a method of a class that makes one: nothing that its module merely
    imports. Its module is imported; nothing is called.
    Raises ArchitectureError.
    """
    check(name, allowed)
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            _check_owner(found, name)
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise ArchitectureError(
            f"{name} cannot be imported: {error}; install it, or put its folder into PYTHONPATH"
        ) from error
    except ArchitectureError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ArchitectureError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not (_makes_modules(found) or inspect.isfunction(found) or _is_class_method(found)):
        raise ArchitectureError(
            f"{name} is a {type(found).__name__}; it must be an nn.Module, or a function that makes one"
        )
    if not _is_in(found.__module__, allowed):
        raise ArchitectureError(
            f"{name} is defined in {found.__module__}, which is not allowed; if you trust that module, name "
            f"it in the card and add --allow-code {found.__module__}"
        )
    called: Callable[..., Any] = found
    return called


def _check_owner(owner: object, name: str) -> None:
    """Raise unless attributes of `owner` may be taken: of the module itself, and of classes in it."""
    if not inspect.isclass(owner) and not (
        inspect.ismodule(owner) and owner.__name__ == name.partition(":")[0]
    ):
        raise ArchitectureError(
            f"{name}: after the colon stands a class, a function, or Class.method of the module itself"
        )


def _is_in(module: str, packages: Collection[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _makes_modules(found: object) -> bool:
    from torch import nn

    return inspect.isclass(found) and issubclass(found, nn.Module)


def _is_class_method(found: object) -> bool:
    return inspect.ismethod(found) and inspect.isclass(found.__self__)
