"""The architectures of all catalogues that a state dict may be of, and which of them is taken.

Architectures that compute the same with the same weights are one choice. Where there are several choices, the
user's word decides, then the checkpoint's own; nothing is guessed.
"""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pthserve.certainty import Inferred, Origin
from pthserve.errors import AmbiguousArchitecture, ArchitectureError
from pthserve.files import checkpoint
from pthserve.text import quoted
from pthserve.zoos import fitting, statements, variants
from pthserve.zoos.base import Source, shapes
from pthserve.zoos.catalogue import Catalogue, Entry, head_digest
from pthserve.zoos.layout import Layout
from pthserve.zoos.search import Match, find
from pthserve.zoos.timm import TIMM, computing_alike
from pthserve.zoos.torchvision import TORCHVISION

CATALOGUES: tuple[Catalogue, ...] = (TORCHVISION, TIMM)
"""Where several have the same architecture, the first one's is taken."""

_MOST = 12
"""Most choices that a message lists."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A state dict, its names as a catalogue's library has them now, and the entries that it may fit."""

    catalogue: Catalogue
    entries: Mapping[str, Entry]
    state_dict: Mapping[str, Tensor]
    layout: Layout


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """An architecture whose body is in a state dict.

    tag: of the pretrained weights that it was named with; "" for the default ones.
    """

    view: View
    name: str
    match: Match
    tag: str = ""

    @property
    def full(self) -> str:
        """The name with its catalogue's, as in `timm/resnet50`."""
        return f"{self.view.catalogue.name}/{self.name}"

    @property
    def called(self) -> str:
        """The name by which it is found again: torchvision's need no library before them."""
        return self.name if self.view.catalogue is CATALOGUES[0] else self.full

    @property
    def entry(self) -> Entry:
        """What the index keeps of it."""
        return self.view.entries[self.name]

    @property
    def choice(self) -> tuple[str, str | int]:
        """Equal for architectures that compute the same with the same weights."""
        group = computing_alike(self.view.catalogue.name, self.name)
        return ("", group) if group else (self.view.catalogue.name, self.name)

    @property
    def same_size(self) -> bool:
        """Whether the file's images are of the architecture's default size, as far as shapes tell."""
        return self.match.body.sizes == self.entry.sizes

    @property
    def has_own_head(self) -> bool:
        """Whether the file has the library's head, up to the number of classes."""
        entry, prefix = self.entry, self.match.prefix
        head = {
            full.removeprefix(prefix): self.view.layout.shapes[full]
            for top in entry.heads
            for full in self.view.layout.names.get((*self.match.node, top), ())
        }
        return head_digest(head, (entry.last, *entry.beside)) == entry.head_digest


def choose(source: Source) -> tuple[Candidate, Inferred]:
    """The architecture that `source` is of, and what that rests on.

    Raises:
        ArchitectureError: none fits.
        AmbiguousArchitecture: several that compute differently do, and none is torchvision's.
    """
    if source.architecture:
        return _named(source, source.architecture)
    problem = ""
    if stated := statements.arguments(source):
        name, _, tag = stated.name.rpartition("/")[2].partition(".")
        if name in TIMM.names():
            try:
                return _with_arguments(source, stated, name, tag)
            except ArchitectureError as error:
                problem = f", though {stated.where} cannot be followed: {error}"
    chosen, where = _stated(source, find_candidates(source))
    taken, choices = min(chosen, key=_preference), _by_choice(chosen)
    if len(choices) > 1 and taken.view.catalogue is not CATALOGUES[0]:
        raise _ambiguous(choices)
    if statements.pretrained_cfg(source):  # which only timm writes
        alike = [one for one in choices[taken.choice] if one.view.catalogue is TIMM]
        taken = min(alike, key=_preference, default=taken)
    words, setting = f"{taken.called}{f'.{taken.tag}' if taken.tag else ''}", f"architecture: {taken.called}"
    if len(choices) == 1:
        words += f", as {where} says" if where else ""
        origin = Origin.ASSUMED if problem else Origin.FILE
        return taken, Inferred("architecture", words + problem, origin, setting)
    # Nobody should have to say that a ResNet-50 is one; but timm has rare variants with the same tensors.
    others = " and ".join(sorted(one.full for one in chosen if one.choice != taken.choice))
    words += f", though {others} would fit and compute differently{problem}"
    return taken, Inferred("architecture", words, Origin.ASSUMED, setting)


def find_candidates(source: Source) -> list[Candidate]:
    """Every architecture whose body is in `source`, and whose head where the file has a library's.

    Raises:
        ArchitectureError: there is none, or there are several networks.
    """
    views = [_view(catalogue, catalogue.index(), source) for catalogue in CATALOGUES]
    candidates = _placed(views, None)
    for quality in (_possible, lambda candidate: candidate.has_own_head):
        candidates = [one for one in candidates if quality(one)] or candidates
    return candidates


def choices(candidates: Iterable[Candidate]) -> list[list[str]]:
    """Their names, those that compute the same together."""
    return [[one.full for one in sorted(alike, key=_preference)] for alike in _by_choice(candidates).values()]


def _possible(candidate: Candidate) -> bool:
    """Whether the architecture can be built in the size of the file's tensors."""
    catalogue = candidate.view.catalogue
    return candidate.same_size or bool(catalogue.implied(candidate.name, candidate.match.body))


def _named(source: Source, wanted: str) -> tuple[Candidate, Inferred]:
    """The architecture of the user's name, whose catalogue may be left out."""
    library, _, rest = wanted.rpartition("/")
    name, _, tag = rest.partition(".")
    having = [
        catalogue for catalogue in CATALOGUES if library in ("", catalogue.name) and name in catalogue.names()
    ]
    if tag:  # which only timm has
        having = [catalogue for catalogue in having if catalogue is TIMM]
    if not having:
        raise ArchitectureError(_unknown(wanted, library, name))
    if tag and tag not in TIMM.tags(name):
        tags = ", ".join(TIMM.tags(name)) or "none"
        raise ArchitectureError(f"timm has no weights {quoted(repr(tag))} of {name}; it has {tags}")
    inferred = Inferred("architecture", wanted, Origin.CARD, f"architecture: {wanted}")
    problems = []
    for catalogue in having:
        try:
            view = _view(catalogue, {name: catalogue.entry(name, **source.kwargs)}, source)
            taken = _placed([view], wanted)[0]
        except ArchitectureError as error:
            problems.append(error)
        else:
            return Candidate(view, name, taken.match, tag), inferred
    raise problems[0]


def _with_arguments(
    source: Source, stated: statements.Arguments, name: str, tag: str
) -> tuple[Candidate, Inferred]:
    """timm's architecture as it is with the arguments that are stated, where these are plain values.

    Raises:
        ArchitectureError: timm cannot use them, or the file does not fit.
    """
    if not statements.is_plain(stated.values):
        raise ArchitectureError("they are more than a few numbers and short texts")
    kwargs = {**stated.values, **source.kwargs}
    candidate, _ = _named(replace(source, kwargs=kwargs), f"{TIMM.name}/{name}")
    match = replace(candidate.match, kwargs=kwargs, reason=f"as {stated.where} says")
    taken = replace(candidate, match=match, tag=tag if tag in TIMM.tags(name) else "")
    setting = f"architecture: {taken.called}"
    return taken, Inferred("architecture", f"{taken.called}, {match.reason}", Origin.FILE, setting)


def _unknown(wanted: str, library: str, name: str) -> str:
    names = {
        f"{catalogue.name}/{one}" if library else one for catalogue in CATALOGUES for one in catalogue.names()
    }
    known = " or ".join(catalogue.name for catalogue in CATALOGUES)
    close = ", ".join(
        difflib.get_close_matches((wanted if library else name)[:100], sorted(names), cutoff=0.5)
    )
    advice = f"did you mean {close}?" if close else fitting.ADVICE
    return f"{known} has no architecture {quoted(repr(wanted))}; {advice}"


def _view(catalogue: Catalogue, entries: Mapping[str, Entry], source: Source) -> View:
    state_dict = {
        modern: tensor for key, tensor in source.state_dict.items() if (modern := catalogue.modern(key))
    }
    return View(catalogue, entries, state_dict, Layout(shapes(state_dict)))


def _placed(views: Sequence[View], name: str | None) -> list[Candidate]:
    """The candidates for the one network in the state dict; of several networks for the moving average."""
    found = [(view, match) for view in views for match in find(view.layout, view.entries)]
    # timm's builders have no arguments that all of its shapes tell.
    torchvisions = [view for view in views if view.catalogue is TORCHVISION]
    for find_variants, tried in ((variants.of_first_layer, views), (variants.of_arguments, torchvisions)):
        if not found:
            found = [
                (view, match)
                for view in tried
                for match in find_variants(view.layout, view.catalogue, view.entries)
            ]
    if not found:
        raise ArchitectureError(fitting.misfit([(v.layout, v.catalogue, v.entries) for v in views], name))
    places: dict[frozenset[str], list[tuple[View, Match]]] = defaultdict(list)
    for view, match in found:
        places[frozenset(match.body.names.values())].append((view, match))
    whole = [alike for names, alike in places.items() if not any(names < other for other in places)]
    means = [alike for alike in whole if averaged(alike[0][1])]
    if len(whole) > 1 and len(means) != 1:
        prefixes = " and ".join(f"`{quoted(alike[0][1].prefix) or '(top)'}`" for alike in whole)
        raise ArchitectureError(
            f"the state dict holds several networks (prefixes {prefixes}); save only the tensors of the one "
            "to serve"
        )
    (alike,) = means if len(whole) > 1 else whole
    return [
        Candidate(view, one, replace(match, name=one))
        for view, match in alike
        for one in match.names or (match.name,)
    ]


def averaged(match: Match) -> bool:
    """Whether the network is a moving average of another."""
    return bool(checkpoint.AVERAGED.search(match.prefix))


def _stated(source: Source, candidates: list[Candidate]) -> tuple[list[Candidate], str]:
    """Those that the checkpoint states, and where it does; all of them, and "", where it does not."""
    for statement in statements.architectures(source):
        if stated := _fitting(statement.name, candidates):
            return stated, statement.where
    if len(_by_choice(candidates)) > 1:
        # A module that holds the network often calls it by its name.
        if within := [one for one in candidates if one.name in one.match.node]:
            return within, ""
        name = statements.named_by_file(source, {one.name for one in candidates})
        if name:
            assert source.path is not None
            return [one for one in candidates if one.name == name], f"the name of {source.path.name}"
    return candidates, ""


def _fitting(text: str, candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates that are called `text`, which may have a library or hub, and a tag."""
    library, _, rest = text.rpartition(":")[2].rpartition("/")
    name, _, tag = rest.partition(".")
    return [
        Candidate(
            one.view,
            one.name,
            one.match,
            tag if one.view.catalogue is TIMM and tag in TIMM.tags(one.name) else "",
        )
        for one in candidates
        if one.name == name
        and (not tag or one.view.catalogue is TIMM)
        and (library not in ("torchvision", "timm") or library == one.view.catalogue.name)
    ]


def _by_choice(candidates: Iterable[Candidate]) -> dict[tuple[str, str | int], list[Candidate]]:
    alike: dict[tuple[str, str | int], list[Candidate]] = defaultdict(list)
    for one in candidates:
        alike[one.choice].append(one)
    return alike


def _preference(candidate: Candidate) -> tuple[object, ...]:
    """Lowest for the one to take among those that compute the same: of its size, and of the plainest name."""
    return (
        CATALOGUES.index(candidate.view.catalogue),
        not candidate.same_size,
        len(candidate.name),
        candidate.name,
    )


def _ambiguous(alike: Mapping[tuple[str, str | int], list[Candidate]]) -> AmbiguousArchitecture:
    groups = [[one.full for one in sorted(candidates, key=_preference)] for candidates in alike.values()]
    firsts = sorted(group[0] for group in groups)
    more = f" and {len(firsts) - _MOST} more" if len(firsts) > _MOST else ""
    return AmbiguousArchitecture(
        "several architectures have these names and shapes, and compute differently: "
        f"{', '.join(firsts[:_MOST])}{more}; state the one that was trained, with "
        f"`--architecture {firsts[0]}` or in model.yaml with `architecture: {firsts[0]}`",
        groups,
    )
