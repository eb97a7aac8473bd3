"""Exported: ONNX models made node by node, as exporters write them, and what they must answer."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 5
SIDE = 32


def weights(seed: int = 0, channels: int = 3) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of a convolution, (8, channels, 3, 3), and of a linear layer, (8, CLASSES)."""
    random = np.random.default_rng(seed)
    convolution = random.standard_normal((8, channels, 3, 3), np.float32)
    return convolution / np.float32(3), random.standard_normal((8, CLASSES), np.float32)


def logits(images: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """What `network` answers for float32 (n, channels, height, width), computed by numpy."""
    convolution, linear = weights(seed, images.shape[1])
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (2, 3))
    features = np.einsum("ncyxhw,fchw->nfyx", windows, convolution).clip(0)
    answer: NDArray[np.float32] = features.mean((2, 3)) @ linear
    return answer


def network(
    path: Path,
    *,
    shape: Any = ("n", 3, SIDE, SIDE),
    before: Any = (),
    after: Any = (),
    outputs: Any = (("logits", ("n", CLASSES)),),
    kind: int = TensorProto.FLOAT,
    constants: Any = (),
    domains: Any = (),
    channels: int = 3,
    external: str = "",
    inputs: Any = (),
) -> Path:
    """An ONNX file: `before` makes `x` of `image`, then a small network, then `after` makes more of `scores`.

    Without `before` the image is `x` itself; without `after` the scores are called `logits`.
    """
    convolution, linear = weights(channels=channels)
    nodes = [
        *before,
        helper.make_node("Conv", ["x" if before else "image", "convolution"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "linear"], ["scores" if after else outputs[0][0]]),
        *after,
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", kind, shape), *inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, form) for name, form in outputs],
        [
            numpy_helper.from_array(convolution, "convolution"),
            numpy_helper.from_array(linear, "linear"),
            *(numpy_helper.from_array(np.asarray(value), name) for name, value in constants),
        ],
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    extra: dict[str, Any] = (
        {"save_as_external_data": True, "location": external, "size_threshold": 0} if external else {}
    )
    onnx.save(model, path, **extra)
    return path
