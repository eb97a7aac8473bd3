"""Blocks of a program of `torch.export` that run under `torch.autocast` or `torch.no_grad`, put in line.

Such a block is a graph of its own within a call. An engine computes without gradients, and in the precision
that it was asked for, so the block's calls count as they are.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

AUTOCAST = "torch.ops.higher_order.wrap_with_autocast"
NO_GRAD = "torch.ops.higher_order.wrap_with_set_grad_enabled"

_DEPTH = 16
"""Most blocks within each other."""
_CHECK = "torch.ops.aten._assert_tensor_metadata.default"
"""A check of types as `torch.autocast` had made them."""


@dataclass(slots=True)
class Inlined:
    """The calls of a graph as nodes of JSON, none of which has a block; autocast: whether some were in one
    that computed in another precision."""

    nodes: list[Any] = field(default_factory=list)
    autocast: bool = False


def inline(nodes: list[Any], most: int) -> Inlined:
    """The calls of `nodes` with those of their blocks.

    Raises:
        ValueError: a block is not one that can be put in line, or there are more than `most` calls.
    """
    inlined = Inlined()
    numbers = iter(range(most))
    for node in _calls(nodes, inlined, lambda name: name, numbers, 0):
        if len(inlined.nodes) == most:
            raise ValueError(f"more than {most} calls")
        inlined.nodes.append(node)
    if inlined.autocast:
        inlined.nodes = [node for node in inlined.nodes if node["target"] != _CHECK]
    return inlined


def _calls(
    nodes: list[Any], inlined: Inlined, name_of: Callable[[str], str], numbers: Iterator[int], depth: int
) -> Iterator[Any]:
    """Each call; name_of: what a value of the graph is called in the whole."""
    if depth > _DEPTH:
        raise ValueError(f"more than {_DEPTH} blocks within each other")
    for node in nodes:
        if node["target"] not in (AUTOCAST, NO_GRAD):
            yield {
                "target": node["target"],
                "inputs": [{**one, "arg": _renamed(one["arg"], name_of)} for one in node["inputs"]],
                "outputs": _renamed(node["outputs"], name_of),
            }
            continue
        arguments = [one["arg"] for one in node["inputs"]]
        place = next(number for number, one in enumerate(arguments) if "as_graph" in one)
        if node["target"] == AUTOCAST:
            inlined.autocast |= arguments[2].get("as_bool") is not False
        graph = arguments[place]["as_graph"]["graph"]
        given, wanted = _names(arguments[place + 1 :]), _names(graph["inputs"])
        made, results = _names(graph["outputs"]), _names(node["outputs"])
        if len(given) != len(wanted) or len(made) != len(results) or len(set(made)) != len(made):
            raise ValueError("a block whose values are not those of its call")
        inner = dict(zip(wanted, map(name_of, given), strict=True))
        if set(made) & set(wanted):
            raise ValueError("a block that gives what it was given")
        inner |= dict(zip(made, map(name_of, results), strict=True))
        yield from _calls(graph["nodes"], inlined, _Names(inner, next(numbers)), numbers, depth + 1)


class _Names:
    """What the values of a block are called in the whole: a name of its own for all that is not `known`."""

    def __init__(self, known: Mapping[str, str], number: int) -> None:
        self._known, self._number = known, number

    def __call__(self, name: str) -> str:
        return self._known.get(name) or f"{self._number}:{name}"


def _names(values: list[Any]) -> list[str]:
    """The names of tensors and sizes."""
    found = []
    for value in values:
        ((kind, inner),) = value.items()
        name = inner.get("name", inner.get("as_name")) if isinstance(inner, dict) else None
        if kind not in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool") or not isinstance(
            name, str
        ):
            raise ValueError(f"a block is given {kind}")
        found.append(name)
    return found


def _renamed(value: Any, name_of: Callable[[str], str]) -> Any:
    """An argument or results with the names of values as they are in the whole."""
    if isinstance(value, list):
        return [_renamed(one, name_of) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: name_of(inner)
        if key in ("name", "as_name") and isinstance(inner, str) and inner
        else _renamed(inner, name_of)
        for key, inner in value.items()
    }
