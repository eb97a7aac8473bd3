"""One network: where in a state dict the network of a known family is, and whether a module is that one."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from pthserve.errors import ArchitectureError
from pthserve.files import checkpoint
from pthserve.text import quoted
from pthserve.zoos.base import Source, shapes
from pthserve.zoos.layout import Part, Shape, compare

if TYPE_CHECKING:
    from torch import nn


def one_place(prefixes: Collection[str], source: Source) -> str:
    """The one of `prefixes`, under which networks of the family are; of several the moving average.

    Raises:
        ArchitectureError: there is none, or there are several.
    """
    if not prefixes:
        raise ArchitectureError(
            f"the state dict does not have the heads of {source.architecture}; its names start with "
            f"{quoted(', '.join(list(source.state_dict)[:3]))}"
        )
    averaged = [prefix for prefix in prefixes if checkpoint.AVERAGED.search(prefix)]
    chosen = list(prefixes) if len(prefixes) == 1 else averaged
    if len(chosen) != 1:
        places = " and ".join(f"`{quoted(prefix) or '(top)'}`" for prefix in prefixes)
        raise ArchitectureError(
            f"the state dict holds several networks (prefixes {places}); save only the tensors of the one "
            "to serve"
        )
    return chosen[0]


def difference(module: "nn.Module", known: Mapping[str, Shape]) -> str:
    """How the names and shapes of a state dict differ from the module's, in words; "" where they agree."""
    expected, found = (
        Part({name: name for name in each}, dict(each)) for each in (shapes(module.state_dict()), known)
    )
    return compare(expected, found, strict=True)
