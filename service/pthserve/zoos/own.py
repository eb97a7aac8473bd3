"""Own: the user's own architecture, a callable that a card names, such as `package.module:callable`.

It runs only where whoever runs the command allows its module.
"""

import importlib
import inspect
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from pthserve.certainty import Inferred, Origin
from pthserve.errors import ArchitectureError
from pthserve.zoos.layout import Part, compare

if TYPE_CHECKING:  # a card's code is looked at before torch is there
    from torch import nn

    from pthserve.zoos.base import Architecture, Source


class Own:
    """Architectures of the user's; see `Zoo`."""

    def claims(self, source: "Source") -> bool:
        """Whether the card names code."""
        return is_code(source.architecture)

    def build(self, source: "Source") -> "Architecture":
        """What the callable returns, with the weights loaded strictly; see `Zoo`."""
        from pthserve.zoos.activation import without_activation
        from pthserve.zoos.base import DEFAULT_SIZE, described, first_channels, put, shapes
        from pthserve.zoos.outputs import probe

        name = source.architecture or ""
        module = _call(name, dict(source.kwargs), source.allowed)
        found = shapes(source.state_dict)
        expected = shapes(module.state_dict())
        prefix = _prefix(list(found), list(expected))
        names = {key.removeprefix(prefix): key for key in found if key.startswith(prefix)}
        ignored = tuple(
            key for key, shape in found.items() if not key.startswith(prefix) and shape in ((), (1,))
        )
        names |= {key: key for key in found if not key.startswith(prefix) and key not in ignored}
        differences = compare(
            Part({key: key for key in expected}, expected),
            Part(names, {short: found[key] for short, key in names.items()}),
            strict=True,
        )
        if differences:
            raise ArchitectureError(f"the weights do not fit {name}: {differences}")
        put(module, names, source.state_dict)
        size = (DEFAULT_SIZE, DEFAULT_SIZE)
        crop = source.spec.crop if source.spec and not source.spec.assumed else size
        channels = [count for count in (first_channels(module), 3, 1) if count in (1, 3)]
        module, hint = without_activation(module, channels[0], crop)
        probed = probe(module, name, dict.fromkeys(channels), crop)
        return described(
            name,
            probed.module,
            probed.channels,
            num_classes=probed.outputs,
            prefix=prefix,
            input_size=DEFAULT_SIZE,
            inferred=(Inferred("architecture", name, Origin.CARD, f"architecture: {name}"),),
            ignored=ignored,
            hint=hint,
        )


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
            f"the card names code, {name}, which runs only if you allow it: if you trust the module "
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
            f"{name} cannot be imported: {error}; install it, or add its folder to PYTHONPATH"
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
            f"{name}: after the colon must be a class, a function, or Class.method of the module itself"
        )


def _is_in(module: str, packages: Collection[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _makes_modules(found: object) -> bool:
    from torch import nn

    return inspect.isclass(found) and issubclass(found, nn.Module)


def _is_class_method(found: object) -> bool:
    return inspect.ismethod(found) and inspect.isclass(found.__self__)


def _call(name: str, kwargs: dict[str, Any], allowed: Collection[str]) -> "nn.Module":
    from torch import nn

    function = resolve(name, allowed)
    try:
        module = function(**kwargs)
    except Exception as error:  # the user's code may raise anything
        raise ArchitectureError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ArchitectureError(f"{name} returned a {type(module).__name__}, not an nn.Module")
    return module


def _prefix(names: list[str], expected: list[str]) -> str:
    """What stands before most of `expected` in `names`."""
    counts: dict[str, int] = {"": 0}
    ends = set(expected)
    for name in names:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in ends:
                prefix = "".join(f"{part}." for part in parts[:depth])
                counts[prefix] = counts.get(prefix, 0) + 1
    return max(counts, key=lambda prefix: counts[prefix])
