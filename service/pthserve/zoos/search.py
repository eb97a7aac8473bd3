"""Where in a state dict an architecture's body lies, and which architecture it is."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pthserve.zoos.catalogue import Entry
from pthserve.zoos.layout import Layout, Part, Path, resemblance


@dataclass(frozen=True, slots=True)
class Match:
    """The body of the architecture `name`, built with `kwargs`, lies under `node` of a state dict."""

    name: str
    node: Path
    body: Part
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """What stands before torchvision's names, dot and all."""
        return "".join(f"{part}." for part in self.node)


def find(layout: Layout, entries: Mapping[str, Entry]) -> list[Match]:
    """Every place in `layout` where the body of one of `entries` lies, the outermost first."""
    known = {entry.digest: name for name, entry in entries.items()}
    counts = {entry.count for entry in entries.values()}
    found: dict[frozenset[str], Match] = {}
    for node, tops, _exact in sorted(_places(layout, entries, counts), key=lambda place: not place[2]):
        part = layout.part(node, tops)
        if name := known.get(part.digest):
            found.setdefault(frozenset(part.names.values()), Match(name, node, part))
    return sorted(found.values(), key=lambda match: len(match.node))


def places(layout: Layout, entries: Mapping[str, Entry]) -> Iterator[tuple[str, Path, dict[str, str]]]:
    """Where one of `entries` might lie by its top-level names, as the library has them, and how many names
    are under them: its name, the node, and the node's children that are the body."""
    for node, children in layout.children.items():
        for name, entry in entries.items():
            for tops in entry.spellings:
                if tops.keys() <= children.keys() and _count(layout, node, tops) == entry.count:
                    yield name, node, tops


def _places(
    layout: Layout, entries: Mapping[str, Entry], counts: set[int]
) -> Iterator[tuple[Path, dict[str, str], bool]]:
    """Where a body of as many names as one of `counts` might lie: node, its children that are the body, and
    whether they are called as in torchvision."""
    spellings = _spellings(entries)
    for node, children in layout.children.items():
        for tops in spellings:
            # A body under a single name is known by any other.
            named = [{child: child} for child in children] if len(tops) == 1 else [tops]
            for here in named:
                if here.keys() <= children.keys() and _count(layout, node, here) in counts:
                    yield node, here, here == tops and all(name == top for name, top in tops.items())


def _count(layout: Layout, node: Path, children: Iterable[str]) -> int:
    return sum(len(layout.names[(*node, child)]) for child in children)


def nearest(layout: Layout, entries: Mapping[str, Entry]) -> tuple[Match | None, float]:
    """The architecture that is most like a part of `layout`, and how alike they are, 0 to 1."""
    best: tuple[Match | None, float] = (None, 0.0)
    spellings = _spellings(entries)
    for node, children in layout.children.items():
        for tops in spellings:
            here = {name: top for name, top in tops.items() if name in children}
            if 2 * len(here) < len(tops) + (len(tops) > 1):
                continue
            part = layout.part(node, here)
            for name, entry in entries.items():
                alike = resemblance(entry.sketch, entry.count, part)
                if alike > best[1]:
                    best = Match(name, node, part), alike
    return best


def _spellings(entries: Mapping[str, Entry]) -> list[dict[str, str]]:
    spellings = {
        tuple(spelling.items()): spelling for entry in entries.values() for spelling in entry.spellings
    }
    return list(spellings.values())
