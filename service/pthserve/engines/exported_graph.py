"""Exported graphs: an ONNX model as OpenVINO reads it, brought into the one form that engines run.

That form is float32 (n, channels, height, width), normalised, to float32 (n, outputs), which are logits.
What an exporter fixed or added is undone: a layout, a number type, a batch of one, a softmax.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pthserve._compat.openvino import runtime
from pthserve.engines.openvino_graph import converted, core, reason
from pthserve.errors import ArchitectureError, EngineError
from pthserve.text import quoted

if TYPE_CHECKING:
    import openvino
    from torch import nn

VALUES = 2**31
"""Most bytes of a value that the graph computes for one image."""
SMALLEST = 1e-30
"""What a probability of zero counts as, where logits are the logarithms of probabilities."""

_SHAPING = {"Convert", "Reshape", "Squeeze", "Unsqueeze", "Identity"}
"""Operations that leave the values of a result as they are."""
_ACTIVATIONS = {"Softmax": "softmax", "LogSoftmax": "softmax", "Sigmoid": "sigmoid"}
_SAME = 1e-3
"""How far two answers for one image may be apart, as a share of the largest value."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """A graph in the form that engines run, and what was found in it.

    activation: `softmax` or `sigmoid`, which it ended in; "" where in neither. outputs: numbers for an image.
    parameters: how many. alone: whether it computes one image at a time, as its batch is fixed.
    """

    graph: "openvino.Model"
    activation: str
    outputs: int
    parameters: int
    alone: bool


def read(content: IO[bytes], beside: Mapping[str, IO[bytes]], name: str) -> "openvino.Model":
    """The graph of the ONNX model in `content`, whose weights may be in the files `beside` it.

    OpenVINO reads those from a folder; so a copy is made in a folder of ours, which is gone afterwards: its
    files stay as long as they are mapped. name: of the model, for messages.
    Raises ArchitectureError.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="pthserve-") as folder:
            if not beside:
                return core().read_model(f"/proc/self/fd/{content.fileno()}")
            for path, file in {**beside, "pthserve-model.onnx": content}.items():
                target = Path(folder, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as copy:
                    file.seek(0)
                    shutil.copyfileobj(file, copy, 2**22)
            return core().read_model(Path(folder, "pthserve-model.onnx"))
    except OSError as error:
        raise ArchitectureError(f"{name}: no temporary copy can be made: {error.strerror}") from error
    except RuntimeError as error:
        raise ArchitectureError(
            f"{name}: OpenVINO cannot read it: {quoted(reason(error), 300)}; export it again with another "
            "opset, or save the model with torch.export.save"
        ) from error


Step = Callable[["openvino.Model"], "openvino.Model"]
"""What makes another graph of a graph."""


def adapt(
    graph: "openvino.Model",
    output: int | Step,
    shape: tuple[int, int, int],
    *,
    channels_last: bool,
    unordered: bool = False,
) -> Adapted:
    """`graph`, whose one input is an image, in the form that engines run.

    Args:
        output: which of its outputs counts; or what makes one of them, a row of numbers an image.
        shape: (channels, height, width) of an image.
        channels_last: whether it takes (n, height, width, channels).
        unordered: whether rounding may exchange the numbers of a row, such as objects with nearly one score.

    Raises:
        ArchitectureError: it cannot be brought into the form, or its values are beyond the bounds.
    """
    activation = ""
    single = graph.clone()
    if isinstance(output, int):
        single = _with_one_output(single, output)
        activation = without_activation(single)
    try:
        batch = _reshape(single, shape, channels_last)
        if not isinstance(output, int):
            single = output(single)
        _check_size(single, shape)
        fixed = _framed(single, shape, channels_last)
        free = _freed(fixed, shape)
        pair = np.random.default_rng(0).random((2, *shape), np.float32)  # as whole numbers, 0 to 255
        expected = np.concatenate([_run(fixed, one[None], batch) for one in pair])
        alone = free is None or not _agree(free, pair, expected, unordered)
        adapted = _looped(fixed, shape, batch) if alone or free is None else free
        if alone and not _agree(adapted, pair, expected, unordered):
            raise ArchitectureError("its answer for an image depends on the other images of a batch")
    except RuntimeError as error:
        raise _refused(shape, error) from error
    if (
        isinstance(output, int)
        and expected.min() >= 0
        and np.abs(expected.sum(1) - 1).max() < 1e-4
        and not activation
    ):
        activation, adapted = "softmax", _logarithms(adapted)
    adapted.input(0).set_names({"image"})
    adapted.output(0).set_names({"logits"})
    counted = sum(
        int(np.prod(node.output(0).get_shape()))
        for node in single.get_ordered_ops()
        if node.get_type_name() == "Constant" and node.output(0).get_element_type().is_real()
    )
    return Adapted(adapted, activation, expected.shape[1], counted, alone)


def sized(graph: "openvino.Model", shape: tuple[int, int, int], channels_last: bool) -> "openvino.Model":
    """`graph` for images of `shape`, (channels, height, width), one at a time where it has no fixed number.

    Raises:
        ArchitectureError: OpenVINO cannot compute it for them.
    """
    made = graph.clone()
    try:
        _reshape(made, shape, channels_last)
    except RuntimeError as error:
        raise _refused(shape, error) from error
    return made


def _reshape(graph: "openvino.Model", shape: tuple[int, int, int], channels_last: bool) -> int:
    """Make `graph` one for images of `shape`; return how many it computes at once. Raises RuntimeError."""
    given = graph.input(0).partial_shape
    batch: int = given[0].get_length() if given[0].is_static else 1
    image = (shape[1], shape[2], shape[0]) if channels_last else shape
    graph.reshape(runtime().PartialShape([batch or 1, *image]))
    return batch or 1


def _refused(shape: tuple[int, int, int], error: RuntimeError) -> ArchitectureError:
    """The error where OpenVINO cannot compute a graph for images of `shape`."""
    return ArchitectureError(
        f"OpenVINO cannot compute it for images of {shape[1]} x {shape[2]} pixels: "
        f"{quoted(reason(error), 300)}"
    )


def of_module(module: "nn.Module", shape: tuple[int, int, int], batch: int) -> "openvino.Model":
    """The graph of a module that computes `batch` images at once, for any number; raises EngineError."""
    graph = converted(module, (batch, *shape), free=False)
    try:
        return _looped(graph, shape, batch)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot repeat the model: {reason(error)}") from error


def first_scale(graph: "openvino.Model") -> tuple[float, float] | None:
    """What the graph does first with a value of the image, as (factor, offset); None where nothing of it.

    Only additions and multiplications by constants count: the normalisation of an image is one of each.
    """
    factor: NDArray[Any] = np.ones(1)
    offset: NDArray[Any] = np.zeros(1)
    node, found = graph.get_parameters()[0], False
    while len(targets := list(node.output(0).get_target_inputs())) == 1:
        target = targets[0]
        node = target.get_node()
        kind = node.get_type_name()
        if kind in _SHAPING:
            continue
        if kind not in {"Add", "Subtract", "Multiply", "Divide"}:
            break
        value = _constant(node.input_value(1 - target.get_index()))
        if value is None or value.size not in (1, 3) or (kind == "Divide" and target.get_index() == 1):
            break
        if kind in {"Add", "Subtract"}:
            turned = kind == "Subtract" and target.get_index() == 1
            factor, offset = (-factor, value - offset) if turned else (factor, offset)
            offset = offset if turned else offset + (value if kind == "Add" else -value)
        else:
            scale = value if kind == "Multiply" else 1 / value
            factor, offset = factor * scale, offset * scale
        found = True
    return (float(np.mean(factor)), float(np.mean(offset))) if found else None


def _constant(output: Any) -> NDArray[Any] | None:
    node = output.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    return np.asarray(node.data, np.float64).ravel()


def _with_one_output(graph: "openvino.Model", output: int) -> "openvino.Model":
    ov = runtime()
    result = graph.get_results()[output]
    return ov.Model([result], graph.get_parameters(), "model")


def without_activation(graph: "openvino.Model", output: int = 0) -> str:
    """Take the softmax or sigmoid that an output of the graph ends in out of it; its name, or ""."""
    result = graph.get_results()[output]
    source = result.input_value(0)
    while source.get_node().get_type_name() in _SHAPING:
        source = source.get_node().input_value(0)
    activation = _ACTIVATIONS.get(source.get_node().get_type_name(), "")
    if activation:
        source.replace(source.get_node().input_value(0))
    return activation


def _check_size(graph: "openvino.Model", shape: Sequence[int]) -> None:
    for node in graph.get_ordered_ops():
        for output in node.outputs():
            form = output.get_partial_shape()
            if form.is_static:
                size = int(np.prod(form.to_shape(), dtype=object)) * output.get_element_type().size
                if size > VALUES:
                    raise ArchitectureError(
                        f"the operation {quoted(node.get_friendly_name())} computes {size} bytes for an "
                        f"image of {shape[1]} x {shape[2]} pixels; at most {VALUES} are allowed"
                    )


def _framed(graph: "openvino.Model", shape: tuple[int, int, int], channels_last: bool) -> "openvino.Model":
    """The graph with the input and the output that engines know, at the batch that it has."""
    ov = runtime()
    from openvino import opset13 as ops

    parameter, result = graph.get_parameters()[0], graph.get_results()[0]
    kind = parameter.get_element_type()
    image = ops.parameter([parameter.get_output_shape(0)[0], *shape], ov.Type.f32, name="image")
    inside: Any = image
    if kind.is_integral():  # values of 0 to 255, of which the service makes 0 to 1
        inside = ops.round(ops.multiply(inside, ops.constant(np.float32(255))), "half_to_even")
    if kind != ov.Type.f32:
        inside = ops.convert(inside, kind.to_string())
    if channels_last:
        inside = ops.transpose(inside, ops.constant(np.array([0, 2, 3, 1])))
    parameter.output(0).replace(inside.output(0))
    last = result.input_value(0)
    form = last.get_partial_shape()
    if form.rank.get_length() != 2:
        sides = [side.get_length() if side.is_static else -1 for side in form][1:]
        if sorted(sides)[:-1] != [1] * (len(sides) - 1):
            raise ArchitectureError(
                f"its output has the shape {form}; a classifier must give one number per class and image, as "
                "(n, classes)"
            )
        last = ops.reshape(last, ops.constant(np.array([0, -1])), special_zero=True).output(0)
    if last.get_element_type() != ov.Type.f32:
        last = ops.convert(last, "f32").output(0)
    return ov.Model([ops.result(last)], [image], "model")


def _freed(graph: "openvino.Model", shape: tuple[int, int, int]) -> "openvino.Model | None":
    """The graph for any number of images; None where it computes with the number that it was made for."""
    free = graph.clone()
    try:
        free.reshape(runtime().PartialShape([-1, *shape]))
    except RuntimeError:
        return None
    return free if free.output(0).partial_shape[0].is_dynamic else None


def _looped(graph: "openvino.Model", shape: tuple[int, int, int], batch: int) -> "openvino.Model":
    """The graph for any number of images, one after the other."""
    ov = runtime()
    from openvino import opset13 as ops
    from openvino.op import tensor_iterator

    body = graph.clone()
    image = ops.parameter([1, *shape], ov.Type.f32, name="one")
    filled: Any = image
    if batch > 1:  # the rest of the batch is computed and thrown away
        filled = ops.broadcast(image, ops.constant(np.array([batch, *shape])))
    body.get_parameters()[0].output(0).replace(filled.output(0))
    last = body.get_results()[0].input_value(0)
    if batch > 1:
        numbers = [ops.constant(np.array([number])) for number in (0, 1, 1)]
        last = ops.slice(last, *numbers, ops.constant(np.array([0]))).output(0)
    body = ov.Model([ops.result(last)], [image], "body")
    for index, node in enumerate(body.get_ordered_ops()):  # names count what the process has made so far
        node.set_friendly_name(f"{node.get_type_name()}_{index}")
    images = ops.parameter([-1, *shape], ov.Type.f32, name="image")
    loop = tensor_iterator()
    loop.set_function(body)
    loop.set_sliced_input(body.get_parameters()[0], images.output(0), 0, 1, 1, -1, 0)
    gathered = loop.get_concatenated_slices(body.get_results()[0].output(0), 0, 1, 1, -1, 0)
    return ov.Model([ops.result(gathered)], [images], "model")


def _logarithms(graph: "openvino.Model") -> "openvino.Model":
    """The graph with the logarithms of its probabilities, of which a softmax makes the same ones again."""
    from openvino import opset13 as ops

    result = graph.get_results()[0]
    last = result.input_value(0)
    floor = ops.constant(np.float32(SMALLEST))
    logarithm = ops.log(ops.maximum(last, floor))
    return runtime().Model([ops.result(logarithm)], graph.get_parameters(), "model")


def _run(graph: "openvino.Model", images: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    filled = np.resize(images, (batch, *images.shape[1:])) if batch > 1 else images
    return _outputs(graph, filled)[: len(images)]


def _agree(
    graph: "openvino.Model",
    images: NDArray[np.float32],
    expected: NDArray[np.float32],
    unordered: bool = False,
) -> bool:
    """Whether a batch gives each image what it is given alone; all but 1 % of the numbers if `unordered`."""
    try:
        found = _outputs(graph, images)
    except RuntimeError:
        return False
    if found.shape != expected.shape:
        return False
    if unordered:
        found, expected = np.sort(found, 1), np.sort(expected, 1)
    close = np.abs(found - expected) <= _SAME * (1 + np.abs(expected).max())
    return bool(close.mean() >= (0.99 if unordered else 1))


def _outputs(graph: "openvino.Model", images: NDArray[np.float32]) -> NDArray[np.float32]:
    compiled = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer: NDArray[np.float32] = compiled.create_infer_request().infer([images])[0].copy()
    if answer.ndim != 2 or not np.isfinite(answer).all():
        raise EngineError(f"its answer to random pixels is not a row of numbers (shape {answer.shape})")
    return answer


def ends(graph: "openvino.Model") -> Iterator[str]:
    """The inputs and outputs of the graph, in words."""
    for kind, found in (("input", graph.inputs), ("output", graph.outputs)):
        for end in found:
            yield f"{kind} {name(end)}: {end.element_type.to_string()} {end.partial_shape}"


def name(end: Any) -> str:
    """The name of an input or output, as the file has it."""
    return quoted(min(end.get_names(), default="(without a name)"))


def metadata(graph: "openvino.Model") -> dict[str, str]:
    """The texts that an exporter wrote into the file beside the graph."""
    if not graph.has_rt_info(["framework"]):
        return {}
    values: dict[str, Any] = graph.get_rt_info(["framework"]).value
    return {key: str(value) for key, value in values.items()}
