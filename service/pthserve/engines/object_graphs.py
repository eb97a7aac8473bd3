"""Object graphs: the outputs of an exported detector or segmenter as the one row of numbers that tasks read.

The outputs of a graph with boxes are brought into the form of `Table`: left, top, right and bottom in shares
of the model's image, a score, and a class. The boxes are sorted and suppressed when the row is read:
OpenVINO's TopK crashes on a static shape with two threads when it sorts all of them. `zoos.program_objects`
computes the same with PyTorch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pthserve._compat.openvino import runtime
from pthserve.files.stated_task import BoxFormat, Layout, Units

if TYPE_CHECKING:
    import openvino


@dataclass(frozen=True, slots=True)
class BoxOutputs:
    """Which outputs of a graph hold boxes, and how.

    Attributes:
        places: The numbers of the outputs: the one with everything if there is a `layout`; otherwise boxes,
            scores and, if the graph has them, class indices.
        sigmoid: Whether the scores are logits.
        size: (height, width) of the model's image in pixels.
    """

    places: tuple[int, ...]
    layout: Layout | None
    format: BoxFormat
    units: Units
    sigmoid: bool
    size: tuple[int, int]

    def widths(self, columns: int) -> list[int]:
        """Return the number of columns of each part of a row, for an output with everything.

        yolov8: the box, and a score for each class. yolov5: the box, a score of the box, and a score for each
        class. rows: the box, its score, and its class.
        """
        assert self.layout is not None
        return {"yolov8": [4, columns - 4], "yolov5": [4, 1, columns - 5], "rows": [4, 1, 1]}[self.layout]

    @property
    def shift(self) -> float | None:
        """The point of a box that its first two numbers state, as a share of its width and height.

        0 is the upper left corner, 0.5 the centre. None if the other two are not a width and a height.
        """
        return {"xyxy": None, "xywh": 0.0, "cxcywh": 0.5}[self.format]

    @property
    def scale(self) -> tuple[float, float, float, float]:
        """The divisors that make shares of the four numbers of a box."""
        if self.units == "shares":
            return 1.0, 1.0, 1.0, 1.0
        height, width = self.size
        return float(width), float(height), float(width), float(height)


def table(graph: "openvino.Model", outputs: BoxOutputs, most: int) -> "openvino.Model":
    """Return the graph with all boxes in the form of `Table`, (n, numbers of all boxes).

    Args:
        most: Number of boxes, for a graph that gives any number of them: fewer are filled up with zeros, and
            of more only the first are kept.
    """
    from openvino import opset13 as ops

    boxes, scores, classes = _parts([_float(graph.outputs[place]) for place in outputs.places], outputs)
    if outputs.sigmoid:
        scores = ops.sigmoid(scores)
    if classes is None:
        top = ops.topk(scores, _whole(1), -1, "max", "value", index_element_type="i64")
        scores, classes = top.output(0), ops.convert(top.output(1), "f32")
    corners = _corners(boxes, outputs.shift)
    shares = ops.divide(corners, ops.constant(np.array(outputs.scale, np.float32)))
    rows = ops.concat([shares, scores, classes], 2)
    if rows.get_output_partial_shape(0)[1].is_dynamic:
        filled = ops.pad(rows, _whole([0, 0, 0]), _whole([0, most, 0]), "constant", _constant(0.0))
        rows = ops.slice(filled, _whole([0]), _whole([most]), _whole([1]), _whole([1]))
    return _flat(graph, rows)


def pixel_scores(graph: "openvino.Model", place: int) -> "openvino.Model":
    """Return the graph with the output number `place`, (n, classes, rows, columns), as a row an image.

    One score a pixel, that of a class beside the background, becomes two, with 0 for the background.
    """
    from openvino import opset13 as ops

    scores = _float(graph.outputs[place])
    if scores.get_partial_shape()[1] == 1:
        scores = ops.concat([ops.multiply(scores, _constant(0.0)), scores], 1)
    return _flat(graph, scores)


def _parts(found: list[Any], outputs: BoxOutputs) -> tuple[Any, Any, Any]:
    """Return boxes, scores and classes, (n, boxes, ...); no classes if the scores have a column for each."""
    from openvino import opset13 as ops

    if outputs.layout is None:
        boxes, scores, *classes = found
        if boxes.get_partial_shape().rank.get_length() == 2:  # of one image
            boxes, scores, *classes = (
                ops.unsqueeze(one, _whole(0)).output(0) for one in (boxes, scores, *classes)
            )
        if scores.get_partial_shape().rank.get_length() == 2:
            scores = ops.unsqueeze(scores, _whole(2))
        return boxes, scores, ops.unsqueeze(classes[0], _whole(2)) if classes else None
    (values,) = found
    if outputs.layout == "yolov8":
        values = ops.transpose(values, _whole([0, 2, 1])).output(0)
    widths = outputs.widths(values.get_partial_shape()[2].get_length())
    boxes, scores, *rest = ops.variadic_split(values, _whole(2), _whole(widths)).outputs()
    if outputs.layout == "yolov5":
        return boxes, ops.multiply(scores, rest[0]), None
    return boxes, scores, rest[0] if rest else None


def _corners(boxes: Any, shift: float | None) -> Any:
    from openvino import opset13 as ops

    if shift is None:
        return boxes
    place, size = ops.variadic_split(boxes, _whole(2), _whole([2, 2])).outputs()
    if shift:
        place = ops.subtract(place, ops.multiply(size, _constant(shift)))
    return ops.concat([place, ops.add(place, size)], 2)


def _float(output: Any) -> Any:
    """Return the value of the output as float32."""
    from openvino import opset13 as ops

    source = output.get_node().input_value(0)
    return source if source.get_element_type() == runtime().Type.f32 else ops.convert(source, "f32").output(0)


def _flat(graph: "openvino.Model", values: Any) -> "openvino.Model":
    from openvino import opset13 as ops

    row = ops.reshape(values, _whole([0, -1]), special_zero=True)
    return runtime().Model([ops.result(row)], graph.get_parameters(), "model")


def _whole(values: int | list[int]) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.array(values, np.int64))


def _constant(value: float) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.float32(value))
