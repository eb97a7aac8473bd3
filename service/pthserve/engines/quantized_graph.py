"""Quantised graphs: NNCF's int8 of an OpenVINO graph, and the same with some layers as they were before.

A layer is what can be left at floating point without the others: an operation whose inputs NNCF quantised, or
several that share a quantised tensor which only moves values, such as the output of a max pooling.
"""

import contextlib
import io
import logging
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pthserve._compat.openvino import runtime
from pthserve.engines.cpu import cpu_flags

if TYPE_CHECKING:
    import openvino

_MOVES = frozenset(
    (
        *("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "VariadicSplit"),
        *("StridedSlice", "Slice", "Gather", "Pad", "ShuffleChannels", "DepthToSpace", "SpaceToDepth"),
        *("ReduceMax", "Broadcast", "Tile"),
    )
)
"""Types of operations that only move values, so that their outputs are quantised as their inputs are."""
_TRANSFORMER = frozenset(("ScaledDotProductAttention", "MVN", "LayerNormalization"))
"""Types of operations that only networks with attention or layer normalisation have."""


def weight_bits() -> int:
    """The bits that weights at int8 may have on this processor.

    Where an x86 processor lacks VNNI and AMX, pairs of products are added up in 16 bits, where those of 8-bit
    weights overflow and saturate; those of 7 bits do not. The weights of depthwise convolutions always have
    8: their products are not added up in pairs.
    """
    flags = cpu_flags()
    return 8 if flags & {"avx512_vnni", "avx_vnni", "amx_int8"} or "asimd" in flags else 7


@dataclass(frozen=True, slots=True)
class Quantization:
    """What of a graph is at int8. The same input gives the same: it holds nothing that was timed.

    Attributes:
        weight_bits: Bits of the weights; 8 need VNNI or AMX on an x86 processor.
        layers: Number of layers that can be at int8.
        floating: Number of those that were left at floating point, by their kind, such as `Convolution`.
        share: Share of the multiplications that are at int8, 0 to 1.
        rest: Precision of all that is not at int8, `bf16` or `fp32`; where bf16 is not native, fp32.
        photos: Number of photos that it was calibrated on.
        whole: How the graph compared with fp32 PyTorch with all layers at int8, in words.
    """

    weight_bits: int
    layers: int
    floating: dict[str, int]
    share: float
    rest: Literal["bf16", "fp32"]
    photos: int
    whole: str

    def words(self) -> str:
        """Describe it for people."""
        left = sum(self.floating.values())
        text = (
            f"{self.layers - left} of {self.layers} layers at int8, with {self.share:.0%} of the "
            f"multiplications and weights of {self.weight_bits} bits"
        )
        if left:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.floating.items())
            text += f"; left at {self.rest}: {kinds}; all at int8: {self.whole}"
        return text


@dataclass(frozen=True, slots=True)
class Layer:
    """A part of a graph that is quantised, or left as it was, as a whole.

    Attributes:
        operations: Their names.
        kind: The type of the first one, such as `Convolution`.
        multiplications: Number of multiplications for one image; 0 if none is with weights.
    """

    operations: tuple[str, ...]
    kind: str
    multiplications: int


@dataclass(slots=True)
class QuantizedGraph:
    """A graph at int8 beside the one it was made from.

    Attributes:
        original: The graph before, with unique names.
        quantized: The same at int8, as NNCF made it.
        layers: What of it can be left as it was.
    """

    original: "openvino.Model"
    quantized: "openvino.Model"
    layers: tuple[Layer, ...] = field(init=False)
    _constant: dict[str, bool] = field(init=False, repr=False)
    _shared: dict[int, set[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the layers."""
        order = self.quantized.get_ordered_ops()
        self._constant = _constants(order)
        groups, shared = _groups(order, self._constant)
        original = _by_name(self.original)
        groups = [[name for name in group if name in original] for group in groups]
        kept = [index for index, group in enumerate(groups) if group]
        self.layers = tuple(
            Layer(
                tuple(groups[index]),
                original[groups[index][0]].get_type_name(),
                sum(_multiplications(original[name]) for name in groups[index]),
            )
            for index in kept
        )
        self._shared = {number: shared[index] for number, index in enumerate(kept)}

    def without(self, layers: Collection[int]) -> "openvino.Model":
        """The graph at int8 with `layers`, by their indices, as they were."""
        graph = self.quantized.clone()
        original, made = _by_name(self.original), _by_name(graph)
        for layer in layers:
            for name in self._shared[layer]:
                quantizer = made[name]
                _replace(quantizer.output(0), _source(quantizer.input(0)))
            for name in self.layers[layer].operations:
                self._restore(made[name], original, made)
        graph.validate_nodes_and_infer_types()
        return graph

    def _restore(self, node: Any, original: dict[str, Any], made: dict[str, Any]) -> None:
        """Give `node` the inputs and the bias that it had."""
        before = original[node.get_friendly_name()]
        for now, then in zip(node.inputs(), before.inputs(), strict=True):
            source = _source(then).get_node()
            if self._constant.get(_source(now).get_node().get_friendly_name(), False):
                now.replace_source_output(_source(then))
            elif source.get_friendly_name() in made:
                output = made[source.get_friendly_name()].output(_source(then).get_index())
                now.replace_source_output(_with_new_bias(output, original))
        for target in list(node.output(0).get_target_inputs()):
            added = target.get_node()
            other = _bias(target)
            if other is None:
                continue
            if (then := original.get(added.get_friendly_name())) is None:
                _replace(added.output(0), node.output(0))
            else:
                other.replace_source_output(_source(then.input(other.get_index())))


def quantize(graph: "openvino.Model", tensors: NDArray[np.float32], bits: int) -> QuantizedGraph:
    """Quantise all that NNCF quantises of `graph`.

    Args:
        graph: At fp32.
        tensors: float32 (n, channels, height, width), normalised images of the kind that the model will see,
            from which the ranges of the activations are taken.
        bits: Of the weights; see `weight_bits`.
    """
    runtime()
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    nncf.set_log_level(logging.ERROR)
    named = graph.clone()
    for index, node in enumerate(named.get_ordered_ops()):  # the names count what the process has made so far
        node.set_friendly_name(f"{node.get_type_name()}_{index}")
    kinds = {node.get_type_name() for node in named.get_ops()}
    with contextlib.redirect_stdout(io.StringIO()):  # it draws progress bars
        quantized = nncf.quantize(
            named,
            nncf.Dataset(list(tensors[:, None])),
            subset_size=len(tensors),
            model_type=nncf.ModelType.TRANSFORMER if kinds & _TRANSFORMER else None,
            advanced_parameters=AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.DISABLE if bits == 8 else OverflowFix.ENABLE
            ),
        )
    return QuantizedGraph(named, quantized)


def _source(value: Any) -> Any:
    return value.get_source_output()


def _by_name(graph: "openvino.Model") -> dict[str, Any]:
    return {node.get_friendly_name(): node for node in graph.get_ops()}


def _replace(output: Any, by: Any) -> None:
    for target in list(output.get_target_inputs()):
        target.replace_source_output(by)


def _inputs(node: Any) -> Iterator[str]:
    return (_source(value).get_node().get_friendly_name() for value in node.inputs())


def _constants(order: Iterable[Any]) -> dict[str, bool]:
    """Whether each operation depends on constants alone, such as the weights."""
    constant: dict[str, bool] = {}
    for node in order:
        inputs = [constant[name] for name in _inputs(node)]
        constant[node.get_friendly_name()] = node.get_type_name() == "Constant" or (
            bool(inputs) and all(inputs)
        )
    return constant


def _groups(order: Iterable[Any], constant: dict[str, bool]) -> tuple[list[list[str]], list[set[str]]]:
    """The operations of each layer; and the quantisers that go where the layer is left as it was.

    A quantiser whose value reaches an operation directly is passed by for this operation alone. One whose
    value is moved on the way goes with all the operations that it reaches.
    """
    reached, moved = _reached(order, constant)
    group_of: dict[str, list[str]] = {name: [name] for names in reached.values() for name in names}
    for quantizer in sorted(moved):
        joined = list(dict.fromkeys(name for each in reached[quantizer] for name in group_of[each]))
        group_of |= dict.fromkeys(joined, joined)
    groups = {id(group): group for group in group_of.values()}.values()
    return list(groups), [{each for each in moved if reached[each][0] in group} for group in groups]


def _reached(order: Iterable[Any], constant: dict[str, bool]) -> tuple[dict[str, list[str]], set[str]]:
    """The operations whose inputs each quantiser of a value gives; and those whose value is moved before."""
    reached: dict[str, list[str]] = {}
    moved: set[str] = set()
    quantizers: dict[str, set[str]] = {}
    for node in order:
        name, kind = node.get_friendly_name(), node.get_type_name()
        inputs = [] if constant[name] else list(_inputs(node))
        sources = set[str]().union(*(quantizers[each] for each in inputs))
        quantizers[name] = sources if kind in _MOVES else set()
        if kind == "FakeQuantize" and inputs:
            quantizers[name] = {name}
            reached[name] = []
        elif kind not in _MOVES and kind != "Result":
            for quantizer in sorted(sources):
                reached[quantizer].append(name)
            moved |= sources.difference(inputs)
    return reached, moved


def _bias(target: Any) -> Any:
    """The other input of an addition of a constant to `target`, one of its inputs; None if it is not one."""
    if target.get_node().get_type_name() != "Add":
        return None
    other = target.get_node().input(1 - target.get_index())
    return other if _source(other).get_node().get_type_name() == "Constant" else None


def _with_new_bias(output: Any, original: dict[str, Any]) -> Any:
    """`output`, with the bias that NNCF added to it where it had none."""
    for target in output.get_target_inputs():
        if _bias(target) is not None and target.get_node().get_friendly_name() not in original:
            return target.get_node().output(0)
    return output


def _multiplications(node: Any) -> int:
    """The number of multiplications of a convolution or a matrix product for one image."""
    kind = node.get_type_name()
    if kind == "MatMul":
        inner = node.input(0).get_partial_shape()
        transposed = node.get_attributes().get("transpose_a", False)
        return _size(node.output(0)) * _length(inner[len(inner) - (2 if transposed else 1)])
    if kind in ("Convolution", "GroupConvolution"):
        weights = node.input(1).get_partial_shape()
        first = 1 if kind == "Convolution" else 2
        return _size(node.output(0)) * math.prod(
            _length(weights[axis]) for axis in range(first, len(weights))
        )
    return 0


def _size(output: Any) -> int:
    """The number of values of `output` for one image; dimensions that are not known count as 1."""
    shape = output.get_partial_shape()
    return math.prod(_length(shape[axis]) for axis in range(1, len(shape)))


def _length(dimension: Any) -> int:
    return int(dimension.get_length()) if dimension.is_static else 1
