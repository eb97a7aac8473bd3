"""OpenVINO on CPU: a graph, compiled for this processor and the threads that it may use.

Of one graph there are two entries: uint8 pixels, with the normalisation as its first nodes, so that a request
copies a quarter of the bytes; and float32 tensors that are normalised. What the preprocessing gives has its
entry at once, the other is compiled when the first one comes. The batch dimension is dynamic in both, unless
the graph is for one image at a time.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pthserve._compat.openvino import runtime
from pthserve.engines import compiled_graphs, mapped_pages
from pthserve.engines.base import Explanation, Images, Logits
from pthserve.engines.class_activation import class_activation, consistent
from pthserve.engines.openvino_graph import core, explained
from pthserve.engines.request_pool import Lanes
from pthserve.errors import EngineError
from pthserve.images.spec import Spec

if TYPE_CHECKING:
    import openvino

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""OpenVINO's INFERENCE_PRECISION_HINT for each precision; at int8, of what is at floating point."""


def precisions() -> tuple[str, ...]:
    """The precisions that this CPU computes natively, fp32 first; int8 runs everywhere."""
    capable = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name in PRECISIONS if name in {"fp32", "int8"} or name.upper() in capable)


def outputs(graph: "openvino.Model", tensors: NDArray[np.float32], threads: int) -> Logits:
    """What `graph` gives for normalised images, float32 (n, channels, height, width); fp32 but for its int8.

    Raises:
        EngineError: OpenVINO cannot compile or run the graph.
    """
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    with explained("OpenVINO cannot compile the model", _ANOTHER):
        request = core().compile_model(graph, "CPU", config).create_infer_request()
        batches = (tensors[start : start + _BATCH] for start in range(0, len(tensors), _BATCH))
        return np.concatenate([request.infer([batch])[0].copy() for batch in batches])


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
        self._entries: dict[bool, Lanes] = {}  # that for pixels, and that for tensors
        self._explaining = threading.Lock()
        self._entry(pixels=spec.rounded)

    def __call__(self, batch: Images) -> Logits:
        """Logits of `batch`; see `Engine`."""
        return self._logits(batch, divided=True)

    def on_one_lane(self, batch: Images) -> Logits:
        """Logits of `batch`; see `Divides`."""
        return self._logits(batch, divided=False)

    def _logits(self, batch: Images, *, divided: bool) -> Logits:
        lanes = self._entry(pixels=batch.dtype == np.uint8)
        with explained("OpenVINO cannot run the model", _ANOTHER):
            if self._one_image and len(batch) > 1:
                return np.concatenate([lanes(image[None], divided=divided) for image in batch])
            return lanes(batch, divided=divided)

    def explain(self, image: NDArray[np.uint8], class_index: int) -> Explanation | None:
        """The class activation map of `image`; see `Explains`."""
        with self._explaining:
            if self._places is None:
                return None
            with explained("OpenVINO cannot run the model", _ANOTHER):
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
            for pixels, lanes in self._entries.items():
                lanes.one = lanes.one or self._for_one(self._graph_from(pixels=pixels))

    @contextlib.contextmanager
    def settling(self) -> Iterator[None]:
        """Release the mapped weights, of which the compiled graphs have what they need; see `Settles`."""
        with self._releasing():
            yield
        mapped_pages.release(".bin", ".blob")

    def close(self) -> None:
        """Give memory back; the engine is not called again."""
        self._graph = None
        self._entries.clear()
        vars(self).pop("_places", None)

    def _entry(self, *, pixels: bool) -> Lanes:
        """The graph with the normalisation before it, or without, compiled when it is first needed."""
        if made := self._entries.get(pixels):
            return made
        with self._lock:
            if pixels not in self._entries:
                self._entries[pixels] = self._compiled(pixels=pixels)
            return self._entries[pixels]

    def _graph_from(self, *, pixels: bool) -> "openvino.Model":
        return _with_normalisation(self._graph, self._spec) if pixels else self._graph

    def _compiled(self, *, pixels: bool) -> Lanes:
        graph = self._graph_from(pixels=pixels)
        with self._releasing():
            shared = self._compile(graph, self.lanes)
            one = None if self._sparing else self._for_one(graph)
            lanes = Lanes(one, [shared.create_infer_request() for _ in range(self.lanes)])
            if self._sparing:  # the first pass reads all weights again
                image = np.zeros((1, *self._spec.image_shape), np.uint8)
                tensor = np.zeros((1, *self._spec.tensor_shape), np.float32)
                with explained("OpenVINO cannot run the model", _ANOTHER):
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
        with explained("OpenVINO cannot compile the model", _ANOTHER):
            config = {**self._config, "NUM_STREAMS": streams}
            if self._compiled_graphs is None:
                return core().compile_model(graph, "CPU", config)
            with compiled_graphs.checked(self._compiled_graphs, graph, config) as kept:
                return core().compile_model(graph, "CPU", {**config, **kept})


_NEEDS = {"bf16": "avx512_bf16 or amx_bf16", "fp16": "avx512_fp16"}


def _with_normalisation(graph: "openvino.Model", spec: Spec) -> "openvino.Model":
    """A copy of `graph` that takes uint8 (n, height, width, channels)."""
    ov = runtime()
    with explained("OpenVINO cannot put the normalisation before the model", _ANOTHER):
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


_BATCH = 8
_ANOTHER = "try another --precision, or serve the weights with --engine torch"
