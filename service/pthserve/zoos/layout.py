"""Layout: the names and shapes in a state dict as a tree, and how a part of it is told from any other.

Two spellings of one network differ in names that carry nothing: a wrapper around the whole, or around a part
of it, is a node with a single child. `Layout.part` leaves such nodes out, in the file's names and in
torchvision's alike, so that `module.`, `_orig_mod.` or `features.module.` need not be known by name.
"""

import hashlib
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pthserve.text import quoted

Shape = tuple[int, ...]
Path = tuple[str, ...]

_SKETCH = 24


class Layout:
    """The tree of dotted names; a node is the tuple of the names above it.

    children: of each node, in order. names: all that lie under each node.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        """shapes: name to shape, without counters such as `num_batches_tracked`, which files may lack."""
        self.shapes = dict(shapes)
        self.children: dict[Path, dict[str, None]] = {}
        self.names: dict[Path, list[str]] = {}
        for name in self.shapes:
            path = tuple(name.split("."))
            for depth, child in enumerate(path):
                self.children.setdefault(path[:depth], {})[child] = None
                self.names.setdefault(path[: depth + 1], []).append(name)

    def part(self, node: Path, tops: Mapping[str, str]) -> "Part":
        """The names under those children of `node` that are keys of `tops`, which says what to call each."""
        depth = len(node)
        found = {}
        for child, top in tops.items():
            for name in self.names[(*node, child)]:
                path = tuple(name.split("."))
                inner = [
                    path[level]
                    for level in range(depth + 1, len(path) - 1)
                    if len(self.children[path[:level]]) > 1
                ]
                leaf = path[max(depth + 1, len(path) - 1) :]
                found[".".join((*[top][: len(tops) > 1], *inner, *leaf))] = name
        return Part(found, {short: self.shapes[name] for short, name in found.items()})


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a layout: short name to the full one, and to its shape."""

    names: dict[str, str]
    shapes: dict[str, Shape]

    @property
    def digest(self) -> str:
        """Equal for two parts with equal short names and shapes, up to what `_loose` leaves open."""
        lines = sorted(self._lines())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    @property
    def marks(self) -> set[int]:
        """A number for each name and shape."""
        return {zlib.crc32(line.encode()) for line in self._lines()}

    @property
    def sketch(self) -> list[int]:
        """The lowest marks: the share of them that another part has estimates the share of all.

        A. Broder, On the resemblance and containment of documents, 1997.
        """
        return sorted(self.marks)[:_SKETCH]

    def _lines(self) -> Iterator[str]:
        return (f"{name} {loose(shape)}" for name, shape in self.shapes.items())


def loose(shape: Shape) -> str:
    """A shape in words, less what a user may change in a known architecture: the channels of the image (the
    second dimension of a convolution, where it is small) and its size (that of a position embedding)."""
    if (len(shape) == 4 and shape[1] <= 4) or (len(shape) == 3 and shape[0] == 1):
        return f"{shape[0]}x*x{'x'.join(map(str, shape[2:]))}"
    return "x".join(map(str, shape))


def compare(expected: Part, found: Part, *, strict: bool = False) -> str:
    """What `found` lacks, has beyond, and has in other shapes, in words; "" where they agree.

    strict: whether shapes must be equal in what `loose` leaves open, too.
    """
    key = words if strict else loose
    missing = [name for short, name in expected.names.items() if short not in found.names]
    surplus = [name for short, name in found.names.items() if short not in expected.names]
    shapes = [
        f"{quoted(found.names[short])} is {words(found.shapes[short])} and not {words(shape)}"
        for short, shape in expected.shapes.items()
        if short in found.shapes and key(found.shapes[short]) != key(shape)
    ]
    told = (("missing", missing), ("not expected", surplus), ("other shapes:", shapes))
    return "; ".join(f"{what} {some(names)}" for what, names in told if names)


def some(names: Iterable[str], count: int = 3) -> str:
    """The first few of `names`, in words."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return (", ".join(map(quoted, names[:count])) or "none") + more


def words(shape: Shape) -> str:
    """A shape in words."""
    return "x".join(map(str, shape)) or "a number"


def resemblance(known: list[int], count: int, part: Part) -> float:
    """How alike a part of `count` names with the sketch `known` is to `part`, 0 to 1 (Jaccard, estimated)."""
    if not known:
        return 0.0
    common = len(part.marks.intersection(known)) / len(known) * count
    return common / (count + len(part.shapes) - common)


def square(count: int) -> int | None:
    """The side of a square of `count`, or None where it is none."""
    side = math.isqrt(count)
    return side if side * side == count else None
