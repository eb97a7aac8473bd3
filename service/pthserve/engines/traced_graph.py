"""Traced graph: the graph of a module whose computation depends on the image, made from a trace.

`torch.export` needs the shape of each result in advance, but the number of boxes that non-maximum suppression
leaves depends on the image. A trace records the operators, and the graph computes the shapes when it runs.
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from pthserve._compat.openvino import fold_constants, graph_of_trace, runtime
from pthserve.images.spec import Spec

if TYPE_CHECKING:
    import openvino
    from torch import nn


def traced(module: "nn.Module", spec: Spec) -> "openvino.Model":
    """Return the graph of `module`: float32 (n, channels, height, width), normalised, to (n, outputs).

    Height and width are free if `spec` does not crop, and n is free unless `module.one_image`. The
    module is traced with noise of another shape than the images on which engines are compared: if a size
    became a constant, the answers for those images are wrong, and the comparison refuses the graph.

    Raises ValueError if the number of images became a constant, and whatever PyTorch and OpenVINO raise for a
    module that they cannot trace or convert.
    """
    import torch

    channels, height, width = spec.tensor_shape
    free = -1 if spec.whole else None
    images = 1 if getattr(module, "one_image", False) else 2
    shape = (images, channels, width, height) if spec.whole else (images, channels, height, width)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))
    with torch.no_grad(), warnings.catch_warnings():
        # About each size that might become a constant, and about `torch.export`, which replaces tracing.
        warnings.simplefilter("ignore")
        trace = torch.jit.trace(module.eval(), (noise,), check_trace=False)  # type: ignore[no-untyped-call]
        graph = graph_of_trace(trace, noise)
    number = 1 if images == 1 else -1
    graph.reshape(runtime().PartialShape([number, channels, free or height, free or width]))
    fold_constants(graph)
    answers = graph.output(0).partial_shape
    if answers.rank.is_static and answers[0].is_static and answers[0] != number:
        raise ValueError(f"the trace answers batches of {images} images only")
    graph.input(0).set_names({"image"})
    graph.output(0).set_names({"logits"})
    return graph
