"""OpenVINO's graphs: made of an `nn.Module` without a compiler or a file in between, saved, read and checked.

What OpenVINO raises becomes an `EngineError` that says what failed, and what to do.
"""

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pthserve._compat.openvino import fold_constants, graph_of, runtime, supported_operators
from pthserve.engines.traced_graph import traced
from pthserve.errors import EngineError
from pthserve.images.spec import Spec

if TYPE_CHECKING:
    import openvino
    import torch
    from torch import nn


@functools.cache
def core() -> Any:
    """OpenVINO's runtime, one for the process."""
    return runtime().Core()


def convert(module: "nn.Module", spec: Spec) -> "openvino.Model":
    """The graph of `module`: float32 (n, channels, height, width), normalised, to float32 (n, classes).

    It goes through `torch.export`, which neither warns nor specialises on what a trace happened to see; only
    what depends on the image is traced, see `traced_graph`. What follows from the weights alone, such as a
    batch normalisation folded into the convolution before it, is computed here: else each compilation would
    do it again, and hold a second copy of the weights. Constants that are left as they were share the memory
    of the module's parameters; the module may be released.

    Raises:
        EngineError: `torch.export`, a trace or OpenVINO's frontend cannot express the module.
    """
    if getattr(module, "varies", False):
        with explained(f"OpenVINO cannot convert {type(module).__name__}", _TORCH, Exception):
            return traced(module, spec)
    # Two images: export takes a dimension of 1 for a constant.
    return converted(module, (2, *spec.tensor_shape), free=True)


def converted(module: "nn.Module", shape: tuple[int, ...], *, free: bool) -> "openvino.Model":
    """The graph of `module` for a batch of `shape`, or of any number of images if `free`; see `convert`."""
    import torch

    number = torch.export.Dim.AUTO if free else torch.export.Dim.STATIC
    with explained(f"OpenVINO cannot convert {type(module).__name__}", _TORCH, Exception):
        with torch.no_grad(), warnings.catch_warnings():
            # Attention of LeViT's kind keeps its biases for the next call; the graph computes them, and
            # export puts the module's attributes back.
            warnings.filterwarnings("ignore", ".* assigned during export", UserWarning)
            exported = torch.export.export(
                module.eval(), (torch.zeros(shape),), dynamic_shapes=({0: number},)
            )
            table: Any = torch.export.default_decompositions()
            for operator in supported_operators():
                table.pop(operator, None)
            graph = graph_of(_without_resizes(exported.run_decompositions(table).module()))
        graph.reshape(runtime().PartialShape([-1 if free else shape[0], *shape[1:]]))
        fold_constants(graph)
    graph.input(0).set_names({"image"})
    graph.output(0).set_names({"logits"})
    return graph


def _without_resizes(module: "torch.fx.GraphModule") -> "torch.fx.GraphModule":
    """`module` with the results of antialiased resizes of what depends on the weights alone, in place.

    OpenVINO lacks them, and models that accept images of any size resize their position embeddings so.
    """
    import torch

    def value(node: "torch.fx.Node") -> Any:
        if node.op == "get_attr":
            return functools.reduce(getattr, str(node.target).split("."), module)
        if node.op != "call_function":
            raise LookupError(node.name)
        function: Any = node.target
        return function(*torch.fx.map_arg(node.args, value), **torch.fx.map_arg(node.kwargs, value))

    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        operator = getattr(node.target, "overloadpacket", None)
        if operator in {aten._upsample_bicubic2d_aa, aten._upsample_bilinear2d_aa}:
            with contextlib.suppress(LookupError), module.graph.inserting_before(node):
                module.register_buffer(f"folded_{node.name}", value(node))
                node.replace_all_uses_with(module.graph.get_attr(f"folded_{node.name}"), propagate_meta=True)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def save(graph: "openvino.Model", path: Path) -> None:
    """Write `graph` to `path` (.xml) and its weights beside it (.bin); the same graph, the same bytes."""
    named = graph.clone()
    named.set_friendly_name("model")
    for index, node in enumerate(named.get_ordered_ops()):  # the names count what the process has made so far
        node.set_friendly_name(f"{node.get_type_name()}_{index}")
    runtime().save_model(named, path, compress_to_fp16=False)


def read(path: Path, weights: Path | None = None, *, name: Path | None = None) -> "openvino.Model":
    """The graph that `save` wrote to `path`; its weights are mapped, not copied.

    weights: the file of its weights; beside `path` where it is left out. name: of the file, for messages.
    Raises:
        EngineError: the files are missing, or no OpenVINO graph.
    """
    name = name or path
    try:
        with path.open("rb") as file:  # else OpenVINO takes it for a file of each framework that it knows
            if not _GRAPH.search(file.read(4096)):
                raise EngineError(f"{name}: is not an OpenVINO graph; {_PACK_AGAIN}")
    except OSError as error:
        raise EngineError(f"{name}: cannot be read: {error.strerror}; {_PACK_AGAIN}") from error
    with explained(f"{name}: cannot be read as an OpenVINO graph", _PACK_AGAIN):
        return core().read_model(path, weights or path.with_suffix(".bin"))


def check(graph: "openvino.Model", spec: Spec, classes: int, *, name: Path) -> None:
    """Raise EngineError unless `graph` takes what `spec` makes and gives a number for each of `classes`.

    It may be for one image at a time. classes: -1 where their number depends on the image. name: of its file,
    for the message.
    """
    ov = runtime()
    ends = (graph.inputs, graph.outputs)
    found = [[end.partial_shape for end in each] for each in ends]
    number = 1 if found[0] and str(found[0][0]).startswith("[1,") else -1
    sizes = (-1, -1) if spec.whole else spec.crop
    many = found[1][0][1] if classes < 0 and found[1] and found[1][0].rank == 2 else classes
    wanted = (ov.PartialShape([number, spec.channels, *sizes]), ov.PartialShape([number, many]))
    if found != [[wanted[0]], [wanted[1]]] or any(
        end.element_type != ov.Type.f32 for each in ends for end in each
    ):
        takes, gives = (" and ".join(map(str, each)) or "nothing" for each in found)
        raise EngineError(
            f"{name}: the graph has the input {takes} and the output {gives}, but the manifest needs "
            f"{wanted[0]} and {wanted[1]}, both f32; {_PACK_AGAIN}"
        )


@contextlib.contextmanager
def explained(
    what: str,
    advice: str,
    kinds: type[Exception] | tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError),
) -> Iterator[None]:
    """Turn `kinds`, or what OpenVINO raises, into an EngineError: `what` failed, the reason, `advice`."""
    try:
        yield
    except EngineError:
        raise
    except kinds as error:
        raise EngineError(f"{what}: {reason(error)}; {advice}") from error


def reason(error: Exception) -> str:
    """The line of `error` that says why: OpenVINO's last, after the places in its source; else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not _PLACES.match(line)]
    if not told:
        return "no reason given"
    return told[-1 if len(told) < len(lines) else 0][:_LONGEST].rstrip(".!")


_GRAPH = re.compile(rb"^\s*(<\?xml[^>]*>)?\s*<net\s[^>]*\bversion=\"1[01]\"")
_PACK_AGAIN = "pack the weights again"
_TORCH = "use --engine torch"
_PLACES = re.compile(r"(Exception from |Check '.*' failed at |FrontEnd API failed with ).*:\d*:?$")
"""Lines of OpenVINO's messages that say where in its source they are from."""
_LONGEST = 300
