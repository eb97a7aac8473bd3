"""Where in a state dict an architecture's body lies, and which architectures it may be."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pthserve.zoos.catalogue import Entry
from pthserve.zoos.layout import Layout, Part, Path, resemblance

_NODES = 50
"""Most nodes of a state dict, the largest, that are compared to find the nearest architecture."""


@dataclass(frozen=True, slots=True)
class Match:
    """The body of the architecture `name`, built with `kwargs`, lies under `node` of a state dict.

    reason: how `kwargs` are known.
    names: all architectures whose bodies have the same names and shapes; `name` is one of them.
    """

    name: str
    node: Path
    body: Part
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    reason: str = "by its shapes"

    @property
    def prefix(self) -> str:
        """What stands before the library's names, dot and all."""
        return "".join(f"{part}." for part in self.node)


def find(layout: Layout, entries: Mapping[str, Entry]) -> list[Match]:
    """Every place in `layout` where the body of one of `entries` lies, the outermost first.

    A body that is a part of another one is no place: a hybrid has the whole of a ResNet in it.
    """
    known: dict[str, list[str]] = defaultdict(list)
    for name, entry in entries.items():
        known[entry.digest].append(name)
    places: dict[frozenset[str], Match] = {}
    for node, tops, _exact in sorted(_places(layout, entries), key=lambda place: not place[2]):
        part = layout.part(node, tops)
        if names := known.get(part.digest):
            places.setdefault(frozenset(part.names.values()), Match(names[0], node, part, names=tuple(names)))
    whole = [match for names, match in places.items() if not any(names < other for other in places)]
    return sorted(whole, key=lambda match: len(match.node))


def places(layout: Layout, entries: Mapping[str, Entry]) -> Iterator[tuple[str, Path, dict[str, str]]]:
    """Where one of `entries` might lie by its top-level names, as the library has them, and how many names
    are under them: its name, the node, and the node's children that are the body."""
    for node, children in layout.children.items():
        for name, entry in entries.items():
            for tops in entry.spellings:
                if tops.keys() <= children.keys() and _count(layout, node, tops) == entry.count:
                    yield name, node, tops


def _places(layout: Layout, entries: Mapping[str, Entry]) -> Iterator[tuple[Path, dict[str, str], bool]]:
    """Where a body might lie: node, its children that are the body, and whether they are called as in the
    library."""
    spellings = _spellings(entries)
    for node, children in layout.children.items():
        for child in children:
            for tops, counts in spellings.get(child, ()):
                if tops.keys() <= children.keys() and _count(layout, node, tops) in counts:
                    yield node, tops, all(name == top for name, top in tops.items())
            # A body under a single name is known by any other.
            for tops, counts in spellings.get("", ()):
                if len(layout.names[(*node, child)]) in counts:
                    yield node, {child: child}, child in tops


def _count(layout: Layout, node: Path, children: Iterable[str]) -> int:
    return sum(len(layout.names[(*node, child)]) for child in children)


def nearest(layout: Layout, entries: Mapping[str, Entry]) -> tuple[Match | None, float]:
    """The architecture that is most like a part of `layout`, and how alike they are, 0 to 1."""
    best: tuple[Match | None, float] = (None, 0.0)
    spelled: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for name, entry in entries.items():
        for tops in entry.spellings:
            spelled[tuple(tops.items())].append(name)
    largest = sorted(layout.children, key=lambda node: -len(layout.names.get(node, layout.shapes)))
    for node in largest[:_NODES]:
        children = layout.children[node]
        for spelling, names in spelled.items():
            here = {name: top for name, top in spelling if name in children}
            if 2 * len(here) < len(spelling) + (len(spelling) > 1):
                continue
            part = layout.part(node, here)
            marks = part.marks
            for name in names:
                alike = resemblance(entries[name].sketch, entries[name].count, marks)
                if alike > best[1]:
                    best = Match(name, node, part, names=(name,)), alike
    return best


def _spellings(entries: Mapping[str, Entry]) -> dict[str, list[tuple[dict[str, str], set[int]]]]:
    """Each way to call a body's top-level names, and the counts of such bodies, under the first name.

    Those with a single name are under "".
    """
    spelled: dict[tuple[tuple[str, str], ...], set[int]] = defaultdict(set)
    for entry in entries.values():
        for tops in entry.spellings:
            spelled[tuple(tops.items())].add(entry.count)
    under: dict[str, list[tuple[dict[str, str], set[int]]]] = defaultdict(list)
    for spelling, counts in spelled.items():
        under[spelling[0][0] if len(spelling) > 1 else ""].append((dict(spelling), counts))
    return under
