"""Class activation map: where in an image a class is, as an output of an OpenVINO graph."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import openvino

_POOLS = {"ReduceMean", "AvgPool", "AdaptiveAvgPool"}
_KEEP_VALUES = {"Reshape", "Squeeze", "Transpose", "Gather", "FakeQuantize", "Convert"}
"""Operations allowed between pooling and the linear layer: they change the shape or layout of the values,
which `consistent` checks, or round them to int8."""
_SLACK = 0.1
"""Maximum difference of the two biases in `consistent`, relative to the logits: int8 rounds only one."""


def class_activation(graph: "openvino.Model") -> "openvino.Model | None":
    """`graph` with its linear head applied at each place of the last feature map, instead of to its mean.

    Zhou et al. (2016), "Learning deep features for discriminative localization". For such a head Grad-CAM
    gives the same map, up to a factor (Selvaraju et al., 2017, "Grad-CAM", 3.1).

    Returns:
        A graph with the outputs float32 (n, height, width, classes) and, as before, (n, classes). None if the
        head is not global average pooling with at most one linear layer.
    """
    import openvino as ov

    graph = graph.clone()
    logits = graph.get_results()[0].input_value(0)
    linear, features = _head(logits)
    if features is None:
        return None
    op = ov.opset13
    places = op.transpose(features, op.constant([0, 2, 3, 1]))
    if linear is not None:
        weights, transposed = linear.input_value(1), linear.get_attributes()["transpose_b"]
        places = op.matmul(places, weights, False, transposed)
    return ov.Model([places.output(0), logits], graph.get_parameters())


def consistent(places: NDArray[np.float32], logits: NDArray[np.float32]) -> bool:
    """Return whether the mean over the places is the logits, up to a bias, which is the same for two images.

    places, logits: of two images, as the graph of `class_activation` gives them.
    """
    biases = logits - places.mean((1, 2))
    return bool(np.abs(biases[0] - biases[1]).max() <= _SLACK * np.abs(logits[0] - logits[1]).max())


def _head(logits: Any) -> tuple[Any, Any]:
    """Return the linear layer of `logits`, and the output that is pooled for it; None for what is missing."""
    output, linear = logits, None
    while True:
        node = output.get_node()
        kind = node.get_type_name()
        if kind in _POOLS:
            return linear, _pooled(node)
        first_linear = kind == "MatMul" and linear is None and not node.get_attributes()["transpose_a"]
        bias = kind == "Add" and linear is None and _is_constant(node.input_value(1))
        if first_linear:
            linear = node
        elif not bias and kind not in _KEEP_VALUES:
            return None, None
        output = node.input_value(0)


def _pooled(pool: Any) -> Any:
    """Return the input of `pool` if it pools (n, channels, height, width) to (n, channels), else None."""
    features = pool.input_value(0)
    given, left = features.get_partial_shape(), pool.output(0).get_partial_shape()
    whole = len(given) == 4 and given[1].is_static and list(left)[1:] in ([given[1]], [given[1], 1, 1])
    return features if whole else None


def _is_constant(output: Any) -> bool:
    node = output.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")
