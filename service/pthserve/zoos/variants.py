"""Variants: architectures that differ from the index by their first layer, or their builder's arguments."""

from collections.abc import Iterator, Mapping

from pthserve.zoos import search
from pthserve.zoos.base import shapes
from pthserve.zoos.catalogue import Catalogue, Entry
from pthserve.zoos.first_layer import FirstLayer
from pthserve.zoos.layout import Layout, Part, Shape
from pthserve.zoos.search import Match

_RESEMBLES = 0.5
"""How alike, 0 to 1, a network and its variant with another first layer are at least."""
_TRIED = 8
"""Most architectures that are built to look for one with the same names."""


def namesakes(
    layout: Layout, catalogue: Catalogue, entries: Mapping[str, Entry]
) -> Iterator[tuple[Match, Part]]:
    """Parts of `layout` with all names of one of `entries` and other shapes, and that architecture's body."""
    seen: set[str] = set()
    for name, node, tops in search.places(layout, entries):
        if name not in seen and len(seen) < _TRIED:
            seen.add(name)
            part, body = layout.part(node, tops), _body(catalogue, name, entries[name])
            if part.names.keys() == body.names.keys():
                yield Match(name, node, part), body


def same_width(ours: Shape, theirs: Shape) -> bool:
    """Whether both are weights of convolutions to as many channels."""
    return len(ours) == len(theirs) == len(("out", "in", "height", "width")) and ours[0] == theirs[0]


def of_first_layer(layout: Layout, catalogue: Catalogue, entries: Mapping[str, Entry]) -> list[Match]:
    """The nearest of `entries`, and those with its names and shapes, where only kernel, channels or bias
    of the first layer differ; empty where more does."""
    close, alike = search.nearest(layout, entries)
    if close is None or alike < _RESEMBLES:
        return []
    body = _body(catalogue, close.name, entries[close.name])
    path = FirstLayer(catalogue.blank(close.name)).path
    weight = next((short for short, name in body.names.items() if name == f"{path}.weight"), "")
    if weight not in close.body.names or not same_width(body.shapes[weight], close.body.shapes[weight]):
        return []
    bias = weight.removesuffix("weight") + "bias"
    full = close.body.names[weight]
    full_bias = full.removesuffix("weight") + "bias"
    as_known = {name: shape for name, shape in layout.shapes.items() if name != full_bias}
    as_known[full] = body.shapes[weight]
    if bias in body.shapes:
        as_known[full_bias] = body.shapes[bias]
    matches = []
    for one in search.find(Layout(as_known), entries):
        names = {**one.body.names, bias: full_bias}
        theirs = {short: layout.shapes[name] for short, name in names.items() if name in layout.shapes}
        part = Part({short: names[short] for short in theirs}, theirs)
        matches.append(Match(one.name, one.node, part, names=one.names))
    return matches


def of_arguments(layout: Layout, catalogue: Catalogue, entries: Mapping[str, Entry]) -> list[Match]:
    """An architecture that is built with arguments which its shapes tell, such as a width."""
    for one, _ in namesakes(layout, catalogue, entries):
        kwargs = catalogue.implied(one.name, one.body)
        if kwargs and _body(catalogue, one.name, entries[one.name], **kwargs).digest == one.body.digest:
            return [Match(one.name, one.node, one.body, kwargs)]
    return []


def _body(catalogue: Catalogue, name: str, entry: Entry, **kwargs: object) -> Part:
    module = catalogue.blank(name, **kwargs)
    return Layout(shapes(module.state_dict())).part((), {top: top for top in entry.tops})
