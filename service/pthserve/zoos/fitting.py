"""A state dict put into one of a catalogue's architectures, part by part."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from pthserve.certainty import Inferred, Origin
from pthserve.errors import ArchitectureError
from pthserve.files.stated_task import Hint
from pthserve.text import quoted
from pthserve.zoos import heads, variants
from pthserve.zoos.base import Choice, Source, shapes
from pthserve.zoos.catalogue import Catalogue, Entry, blank
from pthserve.zoos.first_layer import FirstLayer
from pthserve.zoos.layout import Layout, Part, Shape, compare, loose, some, words
from pthserve.zoos.search import Match, nearest

ADVICE = (
    "Name your own in model.yaml: `architecture: package.module:callable`, and allow it with --allow-code"
)

OWN = "architecture: package.module:callable"
"""The line of a card that states all of a network: code of the user's own."""

_COLOUR = 3
"""Channels of an RGB image."""

# Below this, "the nearest" would say nothing.
_RESEMBLES = 0.2


class Fit:
    """A module on the meta device, and where the state dict has each of its tensors.

    module: the catalogue's, changed where the file is (first layer, head). names: a tensor's name in the
    module to that in the state dict. outputs: how many numbers for an image. input_size: side of the square
    image in pixels. inferred: what was found out beside the architecture. ignored: names in the state dict
    that no inference uses. hint, task_hint, choices: see `Architecture`.
    Raises ArchitectureError where something is left that has no place.
    """

    def __init__(
        self,
        layout: Layout,
        catalogue: Catalogue,
        entry: Entry,
        match: Match,
        source: Source,
    ) -> None:
        """source: what the card states beside the architecture counts."""
        kwargs = {**match.kwargs, **source.kwargs}
        self.source = source
        self.layout, self.catalogue, self.entry, self.match = layout, catalogue, entry, match
        self.names: dict[str, str] = {}
        self.inferred: list[Inferred] = []
        self.hint: Hint | None = None
        self.task_hint = ""
        self.choices: list[Choice] = []
        last = layout.shapes.get(f"{match.prefix}{entry.last}.weight")
        self.outputs = last[0] if last else 1000
        pretrained = self._pretrained()
        if pretrained.keys() - kwargs.keys():
            stated = ", ".join(f"{key}: {str(value).lower()}" for key, value in pretrained.items())
            self._infer(
                "architecture",
                f"{', '.join(pretrained)} as in {catalogue.name}'s pretrained weights",
                f"kwargs: {{{stated}}}",
                Origin.DEFAULT,
            )
        self._infer_arguments()
        arguments = {
            "num_classes": self.outputs,
            **catalogue.implied(match.name, match.body),
            **pretrained,
            **kwargs,
        }
        size = arguments.get(catalogue.size_argument, catalogue.spec(match.name).crop[0])
        self.input_size = size if isinstance(size, int) else size[0]
        unused = self._build(arguments)
        self._fit_body()
        self._fit_head(unused)
        self.ignored = (*self._fit_rest(unused), *unused)

    def _infer_arguments(self) -> None:
        """List the arguments by which the match is another network than the library's own of this name."""
        if not self.match.kwargs:
            return
        stated = ", ".join(f"{key}: {json.dumps(value)}" for key, value in self.match.kwargs.items())
        value, setting = f"with {quoted(stated)}, {self.match.reason}", f"kwargs: {{{quoted(stated)}}}"
        self._infer("architecture", value, setting, Origin.FILE)

    def _pretrained(self) -> dict[str, Any]:
        """What the library sets with its pretrained weights, where the model seems to descend from them."""
        values = self.catalogue.pretrained(self.match.name)
        if not values or not trained(self.source.state_dict):
            return {}
        self.module = blank(self.catalogue, self.match.name, values)
        _, weight = self._first_layer(self._body())
        theirs = self.match.body.shapes.get(weight, ())
        return values if theirs[1:2] == (_COLOUR,) else {}

    def _first_layer(self, body: Part) -> tuple[FirstLayer, str]:
        """The module's first layer, and the short name of its weight in `body`."""
        first = FirstLayer(self.module)
        return first, next(
            (short for short, name in body.names.items() if name == f"{first.path}.weight"), ""
        )

    def _infer(self, subject: str, value: str, setting: str = "", origin: Origin = Origin.ASSUMED) -> None:
        self.inferred.append(Inferred(subject, value, origin, setting))

    def _build(self, arguments: dict[str, Any]) -> list[str]:
        """Build the module, with auxiliary heads if the file has the whole of them; else their names."""
        name, prefix = self.match.name, self.match.prefix
        parts = self.catalogue.auxiliary(name)
        if not parts:
            self.module = blank(self.catalogue, name, arguments)
            return []
        found = [full for part in parts for full in self.layout.names.get((*self.match.node, part), ())]
        self.module = blank(self.catalogue, name, {"aux_logits": bool(found), **arguments})
        expected = shapes(self.module.state_dict())
        auxiliary = {
            prefix + key: shape
            for key, shape in expected.items()
            if key.startswith(tuple(f"{p}." for p in parts))
        }
        if auxiliary == {full: self.layout.shapes[full] for full in found}:
            self.names |= {full.removeprefix(prefix): full for full in found}
            return []
        self.module = blank(self.catalogue, name, {**arguments, "aux_logits": False})
        return found

    def _fit_body(self) -> None:
        theirs = self.match.body.shapes
        self._fit_first_layer(self._body())
        body = self._body()
        for short, name in body.names.items():
            self._widen(name, body.shapes[short], theirs.get(short, ()))
        body = self._body()
        if body.shapes != self.match.body.shapes:
            raise ArchitectureError(
                f"this is not {self.match.name}: {compare(body, self.match.body, strict=True)}. {ADVICE}"
            )
        self.names |= {name: self.match.body.names[short] for short, name in body.names.items()}

    def _body(self) -> Part:
        return Layout(shapes(self.module.state_dict())).part((), {top: top for top in self.entry.tops})

    def _fit_first_layer(self, body: Part) -> None:
        if not FirstLayer.exists(self.module):
            return
        first, weight = self._first_layer(body)
        theirs = self.match.body.shapes
        assumed = None
        if variants.same_width(body.shapes.get(weight, ()), theirs.get(weight, ())):
            assumed = first.fit(theirs[weight], bias=weight.removesuffix("weight") + "bias" in theirs)
        if stated := self.source.first_layer:
            option = first.state(stated)
            self._infer("first layer", option.value, option.setting, Origin.CARD)
        elif assumed:
            self._assume(assumed)

    def _assume(self, choice: Choice) -> None:
        self.choices.append(choice)
        self.inferred.append(choice.inferred)

    def _widen(self, name: str, ours: Shape, theirs: Shape) -> None:
        """Rebuild the convolution that the tensor is of, if it differs in channels of the image alone."""
        path = name.rpartition(".")[0]
        layer = self.module.get_submodule(path)
        if (
            type(layer) is nn.Conv2d  # others standardise their weights, or pad in a way of their own
            and layer.groups == 1
            and ours != theirs
            and loose(ours) == loose(theirs)
        ):
            self.module.set_submodule(path, heads.widen(layer, theirs[1]))

    def _fit_head(self, unused: list[str]) -> None:
        """Give the module the file's head: the library's own; with its last layer replaced; or all of it."""
        path, last, prefix = self.entry.head, self.entry.last, self.match.prefix
        ours: dict[str, Shape] = {}
        theirs: dict[str, Shape] = {}
        for top in self.entry.heads:
            ours |= _under(top, shapes(self.module.state_dict()))
            theirs |= {
                full.removeprefix(prefix): self.layout.shapes[full]
                for full in self.layout.names.get((*self.match.node, top), ())
            }
        if ours == theirs:
            self.names |= {key: prefix + key for key in theirs}
            return
        if self.entry.beside:
            raise ArchitectureError(
                f"the body is {self.match.name}'s, whose answer is the average of several layers "
                f"({', '.join((last, *self.entry.beside))}); they must be as the library has them. {ADVICE}"
            )
        kept = {key: shape for key, shape in ours.items() if key not in _under(last, ours)}
        new = {key: shape for key, shape in theirs.items() if key not in kept}
        beside = False
        head = self.module.get_submodule(path)
        if kept.items() <= theirs.items() and new == _under(last, new):
            self.names |= {key: prefix + key for key in kept}
            path, head = last, self.module.get_submodule(last)
        else:
            new = theirs
        tensors = {prefix + key: shape for key, shape in new.items()}
        # What else a library's head does, such as pooling, is lost with it.
        plain = isinstance(head, nn.Linear | nn.Sequential)
        width = heads.features(head) if plain else None
        if not tensors:
            tensors = self._layers(unused)
            if not tensors:
                self._leave_out(path, head, width)
                return
            beside = True
        takes = f"linear layers and norms on {width} features" if width else "the library's own"
        made = heads.rebuild(tensors, width, before=heads.leading(head)) if width else None
        if made is None and width:
            made, beside = self._fit_two_poolings(tensors, width), False
        if made is None:
            raise ArchitectureError(
                f"the body is {self.match.name}'s, but its head cannot be rebuilt "
                f"({some(f'{quoted(key)} {words(shape)}' for key, shape in tensors.items())}): "
                f"it must be {takes}. {ADVICE}"
            )
        if beside:
            self._infer("head", "the layers beside the body are its head", OWN)
        self.module.set_submodule(path, made.module)
        self._adopt(made, f"{path}.")

    def _leave_out(self, path: str, head: nn.Module, width: int | None) -> None:
        """Have the module give the features that its head, at `path`, would take."""
        reason = f"this is the body of {self.match.name} without a head"
        if width is None:
            raise ArchitectureError(
                f"{reason}: it gives features, not classes; save the state dict of the whole model"
            )
        self.module.set_submodule(path, nn.Sequential(*heads.leading(head), nn.Flatten(1)))
        self.outputs = width
        self.hint = Hint("embedding", reason)

    def _fit_two_poolings(self, tensors: dict[str, Shape], width: int) -> heads.Head | None:
        """The head, where it takes what two poolings give side by side, as fastai's `vision_learner` has."""
        pool = getattr(self.module, "avgpool", None)
        if not isinstance(pool, nn.AdaptiveAvgPool2d):
            return None
        places = math.prod(
            (1, 1) if pool.output_size in (1, (1, 1)) else cast("tuple[int, int]", pool.output_size)
        )
        made = heads.rebuild(tensors, 2 * width // places)
        if made is None:
            return None
        both = heads.TwoPoolings()
        self.module.avgpool = both
        if made.fastai:
            self._infer("head", f"{both.words}, as of fastai's vision_learner", OWN, Origin.FILE)
        else:
            self._assume(both.orders)
        return made

    def _fit_rest(self, unused: list[str]) -> list[str]:
        """Put layers that run on the classes behind the module; the names that are then left."""
        where = f"this is {self.match.name}" + f" under `{quoted(self.match.prefix)}`" * bool(
            self.match.prefix
        )
        if behind := self._layers(unused):
            made = heads.rebuild(behind, self.outputs)
            if made is None:
                raise ArchitectureError(
                    f"{where}, but the tensors {some(behind)} do not belong to any layer. {ADVICE}"
                )
            self._infer("head", "the layers beside the model run on its classes", OWN)
            self.module = nn.Sequential(self.module, made.module)
            self.names = {f"0.{key}": full for key, full in self.names.items()}
            self._adopt(made, "1.")
        left = self._left(unused)
        strange = [name for name in left if self.layout.shapes[name] not in ((), (1,), (self.outputs,))]
        if strange:
            raise ArchitectureError(
                f"{where}, but the tensors {some(strange)} do not belong to any layer. {ADVICE}"
            )
        return left

    def _adopt(self, made: heads.Head, prefix: str) -> None:
        self.names |= {prefix + key: full for key, full in made.names.items()}
        self.outputs = made.outputs
        if made.gaps and self.source.head:
            option = made.activate(**{"activation": "relu", **self.source.head})
            option.apply()
            self._infer("activation", option.value, option.setting, Origin.CARD)
        elif made.gaps and made.fastai:
            (option, *_) = made.activations.options
            self._infer("activation", f"{option.value}, as of fastai's", option.setting, Origin.FILE)
        elif made.gaps:
            self._assume(made.activations)
        if made.alone:
            self.task_hint = (
                "its last layer is wrapped in an nn.Sequential, as with a Sigmoid or Softmax behind it"
            )

    def _left(self, unused: list[str]) -> list[str]:
        taken = {*self.names.values(), *unused}
        return [name for name in self.layout.shapes if name not in taken]

    def _layers(self, unused: list[str]) -> dict[str, Shape]:
        """What is left, but for counters and a loss's class weights: alone, and of one dimension at most."""
        return {
            name: shape
            for name in self._left(unused)
            if len(shape := self.layout.shapes[name]) > 1 or not self._alone(name)
        }

    def _alone(self, name: str) -> bool:
        node = tuple(name.split(".")[:-1])
        return not node or len(self.layout.children[node]) == 1


def trained(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the running means show that the model saw images."""
    return any(bool(tensor.any()) for name, tensor in state_dict.items() if name.endswith("running_mean"))


def misfit(tried: Sequence[tuple[Layout, Catalogue, Mapping[str, Entry]]], name: str | None) -> str:
    """Why no entry fits: the nearest, and what differs.

    Args:
        tried: the state dict as each catalogue's library has its names, and the entries that were tried.
        name: the user's, if any.
    """
    near = [(*nearest(layout, entries), catalogue, entries) for layout, catalogue, entries in tried]
    # The likeness is an estimate: of two that are about equal, the first catalogue's is named.
    close, alike, catalogue, entries = max(near, key=lambda one: round(one[1], 1))
    known = " or ".join(catalogue.name for _, catalogue, _ in tried)
    if close is None or (alike < _RESEMBLES and not name):
        layout, catalogue, entries = tried[0]
        if same := next(variants.namesakes(layout, catalogue, entries), None):
            one, body = same
            return (
                f"no architecture of {known} fits; the nearest is {one.name}, which has the same "
                f"names and {compare(body, one.body)}. Where arguments of its builder make these shapes, "
                f"state them in model.yaml: `architecture: {one.name}` and `kwargs: {{...}}`. {ADVICE}"
            )
        return f"no architecture of {known} has keys like {some(layout.shapes)}. {ADVICE}"
    reference = Layout(shapes(catalogue.blank(close.name).state_dict()))
    body = reference.part((), {top: top for top in entries[close.name].tops})
    library = "" if catalogue is tried[0][1] else f"{catalogue.name}/"
    which = (
        f"this is no {name}"
        if name
        else f"no architecture of {known} fits; the nearest is {library}{close.name}"
    )
    under = f" under `{quoted(close.prefix)}`" if close.prefix else ""
    return f"{which}{under}: {compare(body, close.body) or 'its layers are nested in another way'}. {ADVICE}"


def _under(path: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {key: shape for key, shape in shapes.items() if key.startswith(f"{path}.")}
