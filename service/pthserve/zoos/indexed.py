"""Indexed: architectures that are recognised by the names and shapes in their state dicts.

A module is built without weights and takes the state dict's tensors as they are: nothing is initialised, and
nothing is copied that is float32 already.
"""

import difflib
from dataclasses import replace

from torch import Tensor

from pthserve.certainty import Inferred, Origin
from pthserve.errors import ArchitectureError
from pthserve.text import quoted
from pthserve.zoos import fitting
from pthserve.zoos.base import Architecture, Source, described, put, shapes
from pthserve.zoos.layout import Layout
from pthserve.zoos.torchvision import TORCHVISION, entry


class Indexed:
    """Architectures of the catalogues; see `Zoo`. It claims whatever no other zoo does."""

    def claims(self, source: Source) -> bool:  # noqa: ARG002
        """Any state dict."""
        return True

    def build(self, source: Source) -> Architecture:
        """The architecture of a catalogue that the state dict fits; see `Zoo`."""
        name = source.architecture
        if name and name not in TORCHVISION.names():
            close = ", ".join(difflib.get_close_matches(name[:100], TORCHVISION.names(), cutoff=0.5))
            advice = f"did you mean {close}?" if close else fitting.ADVICE
            raise ArchitectureError(f"torchvision has no architecture {quoted(repr(name))}; {advice}")
        state_dict = {TORCHVISION.modern(key): tensor for key, tensor in source.state_dict.items()}
        return _fit(replace(source, state_dict=state_dict))

    def infer(self, state_dict: dict[str, Tensor]) -> str:
        """The name of the architecture that `state_dict` fits; builds nothing."""
        layout = Layout(shapes({TORCHVISION.modern(key): tensor for key, tensor in state_dict.items()}))
        return fitting.match(layout, TORCHVISION, TORCHVISION.index(), None).name


def _fit(source: Source) -> Architecture:
    name = source.architecture
    entries = (
        {name: entry(name, fitting.blank(TORCHVISION, name, source.kwargs))} if name else TORCHVISION.index()
    )
    layout = Layout(shapes(source.state_dict))
    match = fitting.match(layout, TORCHVISION, entries, name)
    beside: tuple[str, ...] = ()
    if fitting.averaged(match):
        # What it averages lies beside it, and is another network.
        beside = tuple(key for key in layout.shapes if not key.startswith(match.prefix))
        layout = Layout({key: shape for key, shape in layout.shapes.items() if key not in beside})
    fitted = fitting.Fit(layout, TORCHVISION, entries[match.name], match, source)
    put(fitted.module, fitted.names, source.state_dict)
    return described(
        match.name,
        fitted.module,
        num_classes=fitted.outputs,
        prefix=match.prefix,
        input_size=fitted.input_size,
        inferred=(
            Inferred(
                "architecture",
                match.name,
                Origin.CARD if name else Origin.FILE,
                f"architecture: {match.name}",
            ),
            *fitted.inferred,
        ),
        spec=TORCHVISION.spec(match.name),
        ignored=(*fitted.ignored, *beside),
        hint=fitted.hint,
        task_hint=fitted.task_hint,
        choices=tuple(fitted.choices),
    )
