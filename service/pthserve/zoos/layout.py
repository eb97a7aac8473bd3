"""Layout: the names and shapes in a state dict as a tree, and how a part of it is told from any other.

Two spellings of one network differ in names that carry nothing: a wrapper around the whole, or around a part
of it, is a node with a single child. `Layout.part` leaves such nodes out, in the file's names and in
torchvision's alike, so that `module.`, `_orig_mod.` or `features.module.` need not be known by name.
"""

import hashlib
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pthserve.text import quoted

Shape = tuple[int, ...]
Path = tuple[str, ...]

_SKETCH = 24

SIZED = re.compile(
    r"(^|\.)(pos_emb(ed_?\d*)?|patch_pos|relative_position_bias_table|(height|width)_rel|rel_pos_[hw]"
    r"|attention_biases|attention_bias_idxs)$"
)
"""Names of tensors whose shapes follow the size of the image, or of the windows that it is cut into."""


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
        return digest(self._lines())

    @property
    def sizes(self) -> str:
        """Equal for two parts with an equal `digest` whose images have the same size."""
        return digest(f"{name} {words(shape)}" for name, shape in self.shapes.items() if sized(name, shape))

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
        return (f"{name} {loose(shape, name)}" for name, shape in self.shapes.items())


def digest(lines: Iterable[str]) -> str:
    """16 hexadecimal digits, equal for equal lines in any order."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def sized(name: str, shape: Shape) -> bool:
    """Whether the tensor's shape follows the size of the image: a position embedding's does."""
    return (len(shape) == 3 and shape[0] == 1) or SIZED.search(name) is not None


def loose(shape: Shape, name: str = "") -> str:
    """A shape in words, less what a user may change in a known architecture: the channels of the image (the
    second dimension of a convolution, where it is small) and its size (see `sized`)."""
    if len(shape) == 3 and shape[0] == 1:
        return f"1x*x{shape[2]}"
    if sized(name, shape):
        return f"{len(shape)} dimensions"
    if len(shape) == 4 and shape[1] <= 4:
        return f"{shape[0]}x*x{'x'.join(map(str, shape[2:]))}"
    return "x".join(map(str, shape))


def compare(expected: Part, found: Part, *, strict: bool = False) -> str:
    """What `found` lacks, has beyond, and has in other shapes, in words; "" where they agree.

    strict: whether shapes must be equal in what `loose` leaves open, too.
    """
    missing = [name for short, name in expected.names.items() if short not in found.names]
    surplus = [name for short, name in found.names.items() if short not in expected.names]
    shapes = [
        f"{quoted(found.names[short])} is {words(found.shapes[short])} and not {words(shape)}"
        for short, shape in expected.shapes.items()
        if short in found.shapes and _other(short, found.shapes[short], shape, strict)
    ]
    told = (("missing", missing), ("not expected", surplus), ("other shapes:", shapes))
    return "; ".join(f"{what} {some(names)}" for what, names in told if names)


def _other(name: str, one: Shape, other: Shape, strict: bool) -> bool:
    return one != other if strict else loose(one, name) != loose(other, name)


def some(names: Iterable[str], count: int = 3) -> str:
    """The first few of `names`, in words."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return (", ".join(map(quoted, names[:count])) or "none") + more


def words(shape: Shape) -> str:
    """A shape in words."""
    return "x".join(map(str, shape)) or "a number"


def resemblance(known: list[int], count: int, marks: set[int]) -> float:
    """How alike a part of `count` names with the sketch `known` is to one with `marks`, 0 to 1 (Jaccard,
    estimated)."""
    if not known:
        return 0.0
    common = len(marks.intersection(known)) / len(known) * count
    return common / (count + len(marks) - common)


def square(count: int) -> int | None:
    """The side of a square of `count`, or None where it is none."""
    side = math.isqrt(count)
    return side if side * side == count else None
