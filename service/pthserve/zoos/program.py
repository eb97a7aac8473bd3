"""Programs of `torch.export` as modules, which call the operators of a list one after the other.

Nothing is generated or compiled: a name that a file gives is a key of a dictionary and nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pthserve.errors import ArchitectureError
from pthserve.zoos.operators import NUMBERS, QUIET, function, kind

# torch._export.serde.schema: ScalarType, MemoryFormat.
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}


class Program(nn.Module):
    """The calls of a program, one after the other; from normalised images to rows of numbers.

    batch: how many images it computes at once, where that is fixed. read: what makes the rows of the outputs;
    None where there is one output, which has the rows.
    """

    def __init__(
        self, image: str, calls: Sequence["Call"], outputs: Sequence[str], weights: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self._image, self._calls, self._outputs = image, list(calls), tuple(outputs)
        self.read: Callable[[Sequence[Tensor]], Tensor] | None = None
        self._names = {name: f"w{number}" for number, name in enumerate(weights)}
        for name, tensor in weights.items():
            self.register_buffer(self._names[name], tensor)
        used = {name: number for number, call in enumerate(calls) for name in call.needs}
        self._last: dict[int, list[str]] = {}
        for name, number in used.items():
            if name not in outputs:
                self._last.setdefault(number, []).append(name)
        self.batch: int | None = None
        self.dtype = torch.float32
        self.channels_last = self.whole = False

    def forward(self, images: Tensor) -> Tensor:
        """Rows of numbers for normalised images, (n, channels, height, width)."""
        batch = self.batch
        if batch is None or len(images) == batch:
            return self._run(images)
        rows = []
        for piece in torch.split(images, batch):
            filled = piece
            if len(piece) < batch:
                filled = piece[torch.arange(batch) % len(piece)]
            rows.append(self._run(filled)[: len(piece)])
        return torch.cat(rows)

    def _run(self, images: Tensor) -> Tensor:
        if self.whole:
            images = (images * 255).round()
        # The first calls may change their input, which is not theirs.
        given = images.to(self.dtype, copy=True) if self.dtype.is_floating_point else images.to(self.dtype)
        values: dict[str, Any] = {self._image: given.permute(0, 2, 3, 1) if self.channels_last else given}
        values |= {name: getattr(self, place) for name, place in self._names.items()}
        for number, call in enumerate(self._calls):
            call.run(values, images.device)
            for name in self._last.get(number, ()):
                del values[name]
        found = [values[name] for name in self._outputs]
        rows: Tensor = self.read(found) if self.read else found[0]
        return rows.flatten(1).float() if rows.dtype != torch.float32 or rows.ndim != 2 else rows


class Call:
    """One call of a program.

    arguments: by the names of the operator's schema; a `Value` stands for what another call made.
    """

    def __init__(
        self, target: str, function: Any, arguments: Mapping[str, Any], results: Sequence[str]
    ) -> None:
        self.target, self.function, self.arguments, self.results = target, function, arguments, results
        self.needs = {value.name for value in _values(list(arguments.values()))}

    def run(self, values: dict[str, Any], device: torch.device) -> None:
        """Put the results of the call into `values`."""
        filled = {key: _filled(value, values, device) for key, value in self.arguments.items()}
        if self.target in NUMBERS:
            made = self.function(*filled.values())
        else:
            positional = [filled.pop(name) for name in ("self",) if name in filled]
            made = self.function(*positional, **filled)
        results = made if isinstance(made, tuple | list) else (made,)
        if len(results) < len(self.results):
            raise ValueError(f"{self.target} gives {len(results)} values")
        values.update((name, result) for name, result in zip(self.results, results, strict=False) if name)


class Value:
    """What a call made, or the image, or a weight, by name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Device:
    """The device of the image, whatever the program was exported on."""


def _values(arguments: Any) -> list[Value]:
    if isinstance(arguments, Value):
        return [arguments]
    return [value for one in arguments for value in _values(one)] if isinstance(arguments, list) else []


def _filled(value: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    if isinstance(value, Value):
        return values[value.name]
    if isinstance(value, list):
        return [_filled(one, values, device) for one in value]
    return device if isinstance(value, Device) else value


def call_of(node: Any) -> Call:
    """One node of a program as JSON has it; raises ArchitectureError where it is a step of training."""
    target = node["target"]
    arguments = {one["name"]: _argument(one["arg"]) for one in node["inputs"]}
    drawn = kind(target) in QUIET and (arguments.get("train") or arguments.get("dropout_p"))
    if drawn or arguments.get("training") or arguments.get("use_input_stats"):
        raise ArchitectureError("it was exported in training mode; call model.eval() before the export")
    called = function(target)
    schema = getattr(called, "_schema", None)
    if schema is not None and any(argument.name == "device" for argument in schema.arguments):
        arguments["device"] = Device()
    return Call(target, called, arguments, _results(node["outputs"]))


def _results(outputs: Any) -> list[str]:
    """The names of what a call gives; "" for one that has none. A list of tensors has one a tensor."""
    names: list[str] = []
    for output in outputs:
        ((kind, value),) = output.items()
        if kind == "as_tensors":
            names += [one["name"] for one in value]
        elif kind in ("as_tensor", "as_optional_tensor"):
            names.append(value.get("name") or value.get("as_tensor", {}).get("name", ""))
        elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            names.append(value.get("as_name", ""))
        else:
            names.append("")
    return names


def _argument(argument: Any) -> Any:
    """An argument of a call out of the union that JSON has it in."""
    ((union, value),) = argument.items()
    if union not in _READ:
        raise ValueError(f"an argument of the kind {union!r}")
    return _READ[union](value)


def _union(value: Any) -> Any:
    ((kind, inner),) = value.items()
    match kind:
        case "as_name":
            return Value(inner)
        case "as_tensor":
            return Value(inner["name"])
        case "as_none":
            return None
    return _plain(inner)


def _plain(value: Any) -> Any:
    """A number, a truth value, text, or a list of them; an infinity stands as text."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(value.replace("Infinity", "inf"))
    if not isinstance(value, int | float | str | bool):
        raise TypeError(f"{type(value).__name__} is not a number")
    return value


_READ: Mapping[str, Any] = {
    "as_none": lambda _: None,
    "as_tensor": lambda value: Value(value["name"]),
    "as_tensors": lambda value: [Value(one["name"]) for one in value],
    **dict.fromkeys(("as_optional_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"), _union),
    **dict.fromkeys(
        ("as_optional_tensors", "as_sym_ints", "as_sym_bools", "as_sym_floats"),
        lambda value: [_union(one) for one in value],
    ),
    **dict.fromkeys(
        ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string"), _plain
    ),
    "as_scalar_type": lambda value: DTYPES[value],
    "as_memory_format": lambda value: _FORMATS[value],
    "as_layout": lambda _: torch.strided,
    "as_device": lambda _: Device(),
}
"""How each kind of argument is read. Graphs, operators and objects are not among them."""
