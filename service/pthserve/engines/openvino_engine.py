"""OpenVINO on CPU: an `nn.Module` becomes a graph without a compiler or a file in between, and runs.

Of one graph there are two entries: uint8 pixels, with the normalisation as its first nodes, so that a request
copies a quarter of the bytes; and float32 tensors that are normalised. What the preprocessing gives has its
entry at once, the other is compiled when the first one comes. The batch dimension is dynamic in both, unless
the graph is for one image at a time.
"""

import contextlib
import functools
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pthserve._compat.openvino import fold_constants, graph_of, runtime, supported_operators
from pthserve.engines import compiled_graphs, mapped_pages
from pthserve.engines.base import Explanation, Images, Logits
from pthserve.engines.class_activation import class_activation, consistent
from pthserve.engines.request_pool import Lanes
from pthserve.engines.traced_graph import traced
from pthserve.errors import EngineError
from pthserve.images.spec import Spec

if TYPE_CHECKING:
    import openvino
    import torch
    from torch import nn

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""OpenVINO's INFERENCE_PRECISION_HINT for each precision; at int8, of what is at floating point."""


@functools.cache
def core() -> Any:
    """OpenVINO's runtime, one for the process."""
    return runtime().Core()


def precisions() -> tuple[str, ...]:
    """The precisions that this CPU computes natively, fp32 first; int8 runs everywhere."""
    capable = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name in PRECISIONS if name in {"fp32", "int8"} or name.upper() in capable)


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
        with _explained(f"OpenVINO cannot convert {type(module).__name__}", _TORCH, Exception):
            return traced(module, spec)
    # Two images: export takes a dimension of 1 for a constant.
    return converted(module, (2, *spec.tensor_shape), free=True)


def converted(module: "nn.Module", shape: tuple[int, ...], *, free: bool) -> "openvino.Model":
    """The graph of `module` for a batch of `shape`, or of any number of images if `free`; see `convert`."""
    import torch

    number = torch.export.Dim.AUTO if free else torch.export.Dim.STATIC
    with _explained(f"OpenVINO cannot convert {type(module).__name__}", _TORCH, Exception):
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


def outputs(graph: "openvino.Model", tensors: NDArray[np.float32], threads: int) -> Logits:
    """What `graph` gives for normalised images, float32 (n, channels, height, width); fp32 but for its int8.

    Raises:
        EngineError: OpenVINO cannot compile or run the graph.
    """
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    with _explained("OpenVINO cannot compile the model", _ANOTHER):
        request = core().compile_model(graph, "CPU", config).create_infer_request()
        batches = (tensors[start : start + _BATCH] for start in range(0, len(tensors), _BATCH))
        return np.concatenate([request.infer([batch])[0].copy() for batch in batches])


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
    with _explained(f"{name}: cannot be read as an OpenVINO graph", _PACK_AGAIN):
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


class OpenVINOEngine:
    """A graph, compiled for this CPU; see `Engine`.

    Where the threads can be halved it has two lanes; see `Lanes`.

    threads: how many compute. They are not pinned, since the threads that decode share the cores.
    cache_dir: folder in which compiled graphs are kept and looked for; see `compiled_graphs`.
    rest: the precision, at int8, of what the graph leaves at floating point; fp32 where the CPU lacks it.
    sparing: leave the request for a single image, which has weights of its own, to `complete`.

    Raises:
        EngineError: the CPU does not compute `precision`, or OpenVINO cannot compile the graph.
    """

    name = "openvino"

    def __init__(
        self,
        graph: "openvino.Model",
        spec: Spec,
        *,
        precision: str = "fp32",
        threads: int = 1,
        cache_dir: Path | None = None,
        rest: str = "fp32",
        sparing: bool = False,
    ) -> None:
        if precision not in precisions():
            needs = f", which needs {_NEEDS[precision]}" if precision in _NEEDS else ""
            raise EngineError(f"this CPU does not support {precision}{needs}; use {', '.join(precisions())}")
        self.precision = precision
        self._rest = rest
        self.threads = threads
        self.lanes = 1 if threads % 2 else 2
        self._sparing = sparing
        self._cache_dir = cache_dir
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[
                rest if precision == "int8" and rest in precisions() else precision
            ],
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
            "ENABLE_HYPER_THREADING": False,
        }
        self._compiled_graphs = compiled_graphs.usable(cache_dir) if cache_dir is not None else None
        self._spec = spec
        self._graph = graph
        self._lock = threading.Lock()
        self._one_image = bool(graph.input(0).partial_shape[0] == 1)
        self._pixels: Lanes | None = None
        self._tensors: Lanes | None = None
        self._explaining = threading.Lock()
        self._entry(pixels=spec.rounded)

    def __call__(self, batch: Images, *, divided: bool = True) -> Logits:
        """Logits of `batch`; see `Engine` and `Lanes`."""
        lanes = self._entry(pixels=batch.dtype == np.uint8)
        with _explained("OpenVINO cannot run the model", _ANOTHER):
            if self._one_image and len(batch) > 1:
                return np.concatenate([lanes(image[None], divided=divided) for image in batch])
            return lanes(batch, divided=divided)

    def on_one_lane(self, batch: Images) -> Logits:
        """Logits of `batch`; see `Divides`."""
        return self(batch, divided=False)

    def explain(self, image: NDArray[np.uint8], class_index: int) -> Explanation | None:
        """The class activation map of `image`; see `Explains`."""
        with self._explaining:
            if self._places is None:
                return None
            with _explained("OpenVINO cannot run the model", _ANOTHER):
                places: NDArray[np.float32] = self._places.infer([np.ascontiguousarray(image[None])])[0]
            return Explanation("class activation map", places[0, :, :, class_index].copy())

    @functools.cached_property
    def _places(self) -> Any:
        """A request of its own for the class activation map; None where there is none."""
        graph = class_activation(self._graph)
        if graph is None:
            return None
        request = self._compile(_with_normalisation(graph, self._spec), 1).create_infer_request()
        two = np.zeros((2, *self._spec.image_shape), np.uint8)
        two[1] = np.random.default_rng(0).integers(0, 256, two.shape[1:])
        found = request.infer([two])
        return request if consistent(found[0], found[1]) else None

    def with_threads(self, threads: int) -> "OpenVINOEngine":
        """Compile the graph again, for so many threads; see `Resizable`."""
        same: dict[str, Any] = {"precision": self.precision, "cache_dir": self._cache_dir, "rest": self._rest}
        return OpenVINOEngine(self._graph, self._spec, threads=threads, **same)

    def complete(self) -> None:
        """Compile the graph for a single image, too, if that was left out; see `Completes`."""
        with self._lock, self._releasing():
            self._sparing = False
            if self._pixels is not None and self._pixels.one is None:
                self._pixels.one = self._for_one(_with_normalisation(self._graph, self._spec))
            if self._tensors is not None and self._tensors.one is None:
                self._tensors.one = self._for_one(self._graph)

    @contextlib.contextmanager
    def settling(self) -> Iterator[None]:
        """Release the mapped weights, of which the compiled graphs have what they need; see `Settles`."""
        with self._releasing():
            yield
        mapped_pages.release(".bin", ".blob")

    def close(self) -> None:
        """Give memory back; the engine is not called again."""
        self._graph = self._pixels = self._tensors = None
        vars(self).pop("_places", None)

    def _entry(self, *, pixels: bool) -> Lanes:
        """The graph with the normalisation before it, or without, compiled when it is first needed."""
        if made := self._pixels if pixels else self._tensors:
            return made
        with self._lock:
            if pixels:
                self._pixels = self._pixels or self._compiled(pixels=True)
                return self._pixels
            self._tensors = self._tensors or self._compiled(pixels=False)
            return self._tensors

    def _compiled(self, *, pixels: bool) -> Lanes:
        graph = _with_normalisation(self._graph, self._spec) if pixels else self._graph
        with self._releasing():
            shared = self._compile(graph, self.lanes)
            one = None if self._sparing else self._for_one(graph)
            lanes = Lanes(one, [shared.create_infer_request() for _ in range(self.lanes)])
            if self._sparing:  # the first pass reads all weights again
                image = np.zeros((1, *self._spec.image_shape), np.uint8)
                tensor = np.zeros((1, *self._spec.tensor_shape), np.float32)
                with _explained("OpenVINO cannot run the model", _ANOTHER):
                    lanes(image if pixels else tensor)
        return lanes

    def _releasing(self) -> contextlib.AbstractContextManager[None]:
        """Release the weights that the graph has mapped, which it keeps mapped, while they are read."""
        return mapped_pages.releasing(mapped_pages.weights(self._graph))

    def _for_one(self, graph: "openvino.Model") -> Any:
        """A request for one image: known to be one, a pass takes a tenth less. None if there is one lane."""
        if self.lanes == 1:
            return None
        fixed = graph.clone()
        shape = fixed.input(0).partial_shape
        shape[0] = 1
        fixed.reshape(shape)
        return self._compile(fixed, 1).create_infer_request()

    def _compile(self, graph: "openvino.Model", streams: int) -> Any:
        with _explained("OpenVINO cannot compile the model", _ANOTHER):
            config = {**self._config, "NUM_STREAMS": streams}
            if self._compiled_graphs is None:
                return core().compile_model(graph, "CPU", config)
            with compiled_graphs.checked(self._compiled_graphs, graph, config) as kept:
                return core().compile_model(graph, "CPU", {**config, **kept})


_NEEDS = {"bf16": "avx512_bf16 or amx_bf16", "fp16": "avx512_fp16"}


def _with_normalisation(graph: "openvino.Model", spec: Spec) -> "openvino.Model":
    """A copy of `graph` that takes uint8 (n, height, width, channels)."""
    ov = runtime()
    with _explained("OpenVINO cannot put the normalisation before the model", _ANOTHER):
        steps = ov.preprocess.PrePostProcessor(graph.clone())
        image = steps.input(0)
        image.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        image.model().set_layout(ov.Layout("NCHW"))
        # (x / 255 - mean) / std, as (x - 255 mean) / (255 std): one multiply and add a value.
        (
            image.preprocess()
            .convert_element_type(ov.Type.f32)
            .mean([255 * value for value in spec.mean])
            .scale([255 * value for value in spec.std])
            .convert_layout(ov.Layout("NCHW"))
        )
        return steps.build()


_GRAPH = re.compile(rb"^\s*(<\?xml[^>]*>)?\s*<net\s[^>]*\bversion=\"1[01]\"")
_PACK_AGAIN = "pack the weights again"
_BATCH = 8
_ANOTHER = "try another --precision, or serve the weights with --engine torch"
_TORCH = "use --engine torch"
_PLACES = re.compile(r"(Exception from |Check '.*' failed at |FrontEnd API failed with ).*:\d*:?$")
"""Lines of OpenVINO's messages that say where in its source they are from."""


@contextlib.contextmanager
def _explained(
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


_LONGEST = 300
