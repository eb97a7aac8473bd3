"""Indexed: architectures that are recognised by the names and shapes in their state dicts.

A module is built without weights and takes the state dict's tensors as they are: nothing is initialised, and
nothing is copied that is float32 already.
"""

from dataclasses import replace

from pthserve.certainty import Inferred, Origin
from pthserve.images.spec import Spec
from pthserve.zoos import fitting, statements
from pthserve.zoos.base import Architecture, Source, described, put
from pthserve.zoos.candidates import Candidate, averaged, choose
from pthserve.zoos.layout import Layout
from pthserve.zoos.timm import TIMM, completed, preset


class Indexed:
    """Architectures of the catalogues; see `Zoo`. It claims whatever no other zoo does."""

    def claims(self, source: Source) -> bool:  # noqa: ARG002
        """Any state dict."""
        return True

    def build(self, source: Source) -> Architecture:
        """The architecture of a catalogue that the state dict fits; see `Zoo`."""
        chosen, inferred = choose(source)
        return _fit(chosen, source, inferred)

    def infer(self, source: Source) -> str:
        """The name of the architecture that `source` fits, with its library; builds nothing."""
        return choose(source)[0].full


def _fit(chosen: Candidate, source: Source, inferred: Inferred) -> Architecture:
    view, match = chosen.view, chosen.match
    layout, state_dict = view.layout, view.state_dict
    beside: tuple[str, ...] = ()
    if averaged(match):
        # What it averages lies beside it, and is another network.
        beside = tuple(key for key in layout.shapes if not key.startswith(match.prefix))
        layout = Layout({key: shape for key, shape in layout.shapes.items() if key not in beside})
    fitted = fitting.Fit(layout, view.catalogue, chosen.entry, match, replace(source, state_dict=state_dict))
    put(fitted.module, fitted.names, state_dict)
    spec, stated = _spec(chosen, source, fitted.input_size)
    arguments = {**view.catalogue.implied(chosen.name, match.body), **match.kwargs, **source.kwargs}
    return described(
        chosen.called,
        fitted.module,
        # The first convolution of timm's may be on blocks of pixels.
        channels=arguments.get("in_chans", 3) if view.catalogue is TIMM else None,
        num_classes=fitted.outputs,
        prefix=match.prefix,
        input_size=spec.crop[0] if view.catalogue is TIMM else fitted.input_size,
        inferred=(inferred, *fitted.inferred, *stated),
        spec=spec,
        ignored=(*fitted.ignored, *beside),
        hint=fitted.hint,
        task_hint=fitted.task_hint,
        labels=statements.labels(source, fitted.outputs),
        choices=tuple(fitted.choices),
    )


def _spec(chosen: Candidate, source: Source, size: int) -> tuple[Spec, tuple[Inferred, ...]]:
    """The preprocessing, in the image's size; the checkpoint's own where it states one, as timm writes it."""
    if chosen.view.catalogue is not TIMM:
        return chosen.view.catalogue.spec(chosen.name), ()
    values = TIMM.preset(f"{chosen.name}.{chosen.tag}")
    assumed, stated = True, statements.pretrained_cfg(source)
    if stated:
        cfg, where = stated
        try:
            values, assumed = completed(cfg), False
            preset(**values)
        except ValueError as error:
            advice = f"the architecture's default, as {where} cannot be followed: {error}"
            values = TIMM.preset(chosen.name)
            return preset(**values), (Inferred("preprocessing", advice, Origin.ASSUMED),)
    if TIMM.law(chosen.name) or size != TIMM.size(chosen.name):  # else the module takes any size
        values = {**values, "input_size": [3, size, size]}
    return replace(preset(**values), assumed=assumed), ()
