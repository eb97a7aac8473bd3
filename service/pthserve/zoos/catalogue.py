"""The protocol of a catalogue: a library's architectures as data, by which a state dict is recognised.

torchvision's is one; what is not data, such as how a body is found and a head rebuilt, is the same for all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from pthserve.errors import ArchitectureError
from pthserve.images.spec import Spec
from pthserve.text import quoted
from pthserve.zoos.base import shapes
from pthserve.zoos.bounded_build import check_numbers
from pthserve.zoos.layout import Layout, Part, Shape, digest, words


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index keeps of an architecture, whose body is all but its head and its auxiliary heads.

    last: path of the layer that gives the classes. tops: the body's top-level names, each with its number
    among the module's children (None: a parameter). count: names in the body. digest, sketch, sizes: as in
    `layout.Part`. first: short name of the weights of the first convolution. head_digest: as the function
    has it. beside: paths of other layers that give the classes, whose average is the answer.
    group: number of the architectures that compute the same with the same weights, in this catalogue and in
    others; of those with an equal digest alone, 0 where there is only one.
    """

    last: str
    tops: dict[str, int | None]
    count: int
    digest: str
    sketch: list[int]
    first: str = ""
    sizes: str = ""
    head_digest: str = ""
    beside: tuple[str, ...] = ()
    group: int = 0

    @property
    def head(self) -> str:
        """Top-level name of the head."""
        return self.last.partition(".")[0]

    @property
    def heads(self) -> list[str]:
        """Top-level names of the head, and of what else gives the classes."""
        return list(dict.fromkeys(path.partition(".")[0] for path in (self.last, *self.beside)))

    @property
    def spellings(self) -> list[dict[str, str]]:
        """Ways in which a file may call the body's top-level names: as they are, and by number, as in
        `nn.Sequential(*model.children())`."""
        named = {top: top for top in self.tops}
        numbered = {str(number): top for top, number in self.tops.items()}
        return [named] if None in self.tops.values() else [named, numbered]


class Catalogue(Protocol):
    """The image classifiers of one library."""

    name: str
    """The library's, as in `torchvision/resnet50`."""

    size_argument: str
    """The argument of its builders that is the side of the square image in pixels."""

    def names(self) -> Sequence[str]:
        """Every architecture that the library has."""

    def index(self) -> Mapping[str, Entry]:
        """Name to entry, as it ships."""

    def entry(self, name: str, **kwargs: Any) -> Entry:
        """The entry of an architecture that is built with these arguments.

        Raises:
            ArchitectureError: the library cannot use them.
        """

    def modern(self, key: str) -> str:
        """The present spelling of a tensor's name that an older version of the library saved; "" for what is
        no weight."""

    def blank(self, name: str, **kwargs: Any) -> nn.Module:
        """The architecture without weights, such as on the meta device.

        Raises:
            Exception: whatever the library raises for arguments that it cannot use.
        """

    def auxiliary(self, name: str) -> tuple[str, ...]:
        """Top-level names of the heads that only training runs; a file may lack them."""

    def implied(self, name: str, body: Part) -> dict[str, Any]:
        """The arguments of the builder that the shapes of the body tell, such as the image's size."""

    def pretrained(self, name: str) -> dict[str, Any]:
        """Arguments that the library sets with its pretrained weights and that no key tells."""

    def spec(self, name: str) -> Spec:
        """The preprocessing that the architecture was trained with by default.

        name: may end in a tag that tells pretrained weights apart, where the library has such.
        """


def describe(
    module: nn.Module,
    last: str,
    auxiliary: Sequence[str] = (),
    *,
    beside: tuple[str, ...] = (),
    first: str = "",
) -> Entry:
    """The entry of an architecture, as `module` is built.

    Args:
        last: path of the layer that gives the classes.
        auxiliary: top-level names of heads that only training runs.
        beside: paths of other layers that give the classes.
        first: name of the weights of the first convolution.
    """
    known = shapes(module.state_dict())
    layout = Layout(known)
    numbers = {child: number for number, (child, _) in enumerate(module.named_children())}
    heads = {path.partition(".")[0] for path in (last, *beside)}
    tops = {top: numbers.get(top) for top in layout.children[()] if top not in {*heads, *auxiliary}}
    body = layout.part((), {top: top for top in tops})
    head = {name: shape for name, shape in known.items() if name.partition(".")[0] in heads}
    return Entry(
        last,
        tops,
        len(body.shapes),
        body.digest,
        body.sketch,
        next((short for short, full in body.names.items() if full == first), ""),
        body.sizes,
        head_digest(head, (last, *beside)),
        beside,
    )


def head_digest(head: Mapping[str, Shape], lasts: Iterable[str]) -> str:
    """Equal for two heads that differ at most in how many classes they tell apart.

    Args:
        head: name to shape of all that is in it.
        lasts: paths of the layers that give the classes.
    """
    paths = tuple(f"{path}." for path in lasts)
    return digest(
        f"{name} {words(shape[1:] if name.startswith(paths) else shape)}" for name, shape in head.items()
    )


def blank(catalogue: Catalogue, name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """The catalogue's module without weights; ArchitectureError where it cannot use `kwargs`."""
    check_numbers(dict(kwargs), name)
    try:
        return catalogue.blank(name, **kwargs)
    except Exception as error:  # libraries check few of their arguments, and fail on others as they may
        raise ArchitectureError(
            f"{name} cannot be built with {quoted(dict(kwargs))}: {quoted(error)}"
        ) from error
