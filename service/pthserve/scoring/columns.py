"""Columns: the answers of a task as flat, typed columns, from the fields of its JSON.

A column has the name and the type of the field in the JSON answer. Fields that are the same for all images,
or that follow from others, are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from pthserve.loading.model import Model
from pthserve.scoring.pipeline import Row, Scored

LEFT_OUT = frozenset(("task", "threshold", "units", "top", "size", "class_map"))
"""Fields of answers that are not columns. The manifest has those that are the same for all images, `top`
repeats some of `probabilities`, `width` and `height` are the size, and no pictures are made."""
OWN = ("key", "width", "height", "model_digest", "error")
"""Columns of every task."""


class Columns:
    """The columns of a model's answers.

    schema: `key`, those of the task, the `width` and `height` of the image as sent, the `model_digest`, and
    `error`: why there is no answer, or null.

    Args:
        selected: Returns the requested form of an answer; see `Selects`.
    """

    def __init__(self, model: Model, selected: Callable[[Any], Any]) -> None:
        self._selected = selected
        self._digest = model.digest
        fields = model.task.answer_model.model_fields
        own = {
            name: _type(field.annotation, name, model)
            for name, field in fields.items()
            if name not in LEFT_OUT
        }
        if own.keys() & set(OWN):
            raise AssertionError(f"a field of the task {model.task.name} has the name of another column")
        self._names = tuple(own)
        self._ranked = {"class_index", "probabilities"} <= own.keys()
        columns = []
        for name, kind in own.items():
            if name == "probabilities" and self._ranked:
                columns.append(pa.field("probability", pa.float32()))
            columns.append(pa.field(name, kind))
        self.schema = pa.schema(
            [
                pa.field("key", pa.string(), nullable=False),
                *columns,
                pa.field("width", pa.int32()),
                pa.field("height", pa.int32()),
                pa.field("model_digest", pa.string(), nullable=False),
                pa.field("error", pa.string()),
            ]
        )

    def row(self, answer: Any) -> Row:
        """The columns of an answer."""
        fields = self._selected(answer).to_dict(0)
        row = {name: fields.get(name) for name in self._names}
        if self._ranked:
            row["probability"] = float(fields["probabilities"][fields["class_index"]])
        return row

    def batch(self, results: Sequence[Scored]) -> pa.RecordBatch:
        """The rows of `results`."""
        empty: Mapping[str, Any] = {}
        columns: dict[str, Sequence[Any]] = {
            "key": [one.item.images.key(one.item.number) if one.item.images else "" for one in results],
            "width": [one.size and one.size[0] for one in results],
            "height": [one.size and one.size[1] for one in results],
            "model_digest": [self._digest] * len(results),
            "error": [one.error for one in results],
        }
        rows = [one.row or empty for one in results]
        arrays = [
            pa.array(
                columns[field.name] if field.name in OWN else [row.get(field.name) for row in rows],
                field.type,
            )
            for field in self.schema
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def _type(annotation: Any, name: str, model: Model) -> pa.DataType:
    """The type of a column for a field of a pydantic model."""
    plain = {bool: pa.bool_(), int: pa.int64(), float: pa.float32(), str: pa.string()}
    if annotation in plain:
        return plain[annotation]
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind in (Union, UnionType):
        (inner,) = (one for one in arguments if one is not NoneType)
        return _type(inner, name, model)
    if kind is list:
        return pa.list_(_type(arguments[0], name, model))
    if kind is dict:  # its names are those of the model's outputs
        blank = model.task.answer(np.zeros(model.outputs, np.float32), model.labels)
        names = blank.to_dict(0)[name]
        return pa.struct([(one, _type(arguments[1], name, model)) for one in names])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct(
            [(one, _type(field.annotation, one, model)) for one, field in annotation.model_fields.items()]
        )
    raise AssertionError(f"the field {name} has a type for which there is no column type: {annotation}")
