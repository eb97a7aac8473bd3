"""Exported programs: a .pt2 file as a module, with what its graph tells of images, outputs and batch."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pthserve.certainty import Inferred, Origin
from pthserve.errors import ArchitectureError, EngineError, WeightsError
from pthserve.files import documents, pt2
from pthserve.files.pt2 import Stored
from pthserve.text import quoted
from pthserve.zoos import exported_objects, program_blocks, program_objects
from pthserve.zoos.base import Architecture, Source
from pthserve.zoos.exported_ends import Form, ImageInput, chosen, hint, told
from pthserve.zoos.exported_objects import Objects
from pthserve.zoos.layout import some
from pthserve.zoos.operators import function, kind
from pthserve.zoos.program import DTYPES, Call, Program, Value, call_of

NODES = 100_000
"""Most calls of a program."""
VALUES = 2**31
"""Most bytes of a value that the program computes for one image."""
_AUTOCAST = (
    Inferred(
        "precision",
        "where torch.autocast had the model compute with fewer bits, it computes as all the rest",
        Origin.FILE,
    ),
)
_SAME = 1e-3
"""How far two answers for one image may be apart, as a share of the largest value."""


def build(source: Source, content: IO[bytes]) -> Architecture:
    """The architecture of a .pt2 file; see `Zoo`."""
    file = source.path.name if source.path else "the model"
    try:
        archive = pt2.read(content)
        return _build(source, archive, file)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ArchitectureError(
            f"{file}: its program cannot be read ({type(error).__name__}: {quoted(error, 200)}); export it "
            "again"
        ) from error


def _build(source: Source, archive: pt2.Archive, file: str) -> Architecture:
    module = archive.program["graph_module"]
    graph, signature = module["graph"], module["signature"]
    weights, image = _inputs(signature, archive, file)
    outputs = _outputs(signature, file)
    names = _output_names(module, outputs)
    meta = graph["tensor_values"]
    forms = [_form(meta[name]) for name in outputs]
    nodes, autocast = _nodes(graph, file)
    calls = [call_of(node) for node in nodes]
    form = _form(meta[image])
    taken = ImageInput.of(form, file)
    dtype = DTYPES[meta[image]["dtype"]]
    whole = not dtype.is_floating_point
    named = source.kwargs.get("output")
    found = None
    if exported_objects.has_objects(source.task, named, forms, {}):
        size = taken.size(source.spec, file, exported_objects.SIDE)
        found = exported_objects.read(
            source.task, source.labels, exported_objects.Ends(names, forms, {}, size, file)
        )
        activation, lasts = "", [outputs[place] for place in _places(found)]
        if isinstance(found.outputs, int):
            calls, last, activation = _without_activation(calls, lasts[0])
            lasts = [last]
    else:
        size = taken.size(source.spec, file)
        calls, last, activation = _without_activation(calls, outputs[chosen(names, forms, named, file)])
        lasts = [last]
    program = Program(image, calls, lasts, weights).eval()
    program.dtype, program.channels_last, program.whole = dtype, taken.channels_last, whole
    if found is not None:
        program.read = _reader(found)
    shape = (taken.channels, *size)
    _check_size(program, shape, form[0] or 1, file)
    numbers, alone = _checked(program, shape, form[0], file)
    scale = (1 / 255, 0.0) if whole else _first_scale(calls, image, weights)
    spec, inferred = taken.preprocessing(source.spec, size, scale, whole=whole)
    if found is not None:
        spec, inferred = exported_objects.preprocessing(found, spec, inferred)
    return Architecture(
        "exported program",
        program,
        num_classes=numbers if found is None else found.classes,
        prefix="",
        parameters=sum(tensor.numel() for tensor in weights.values() if tensor.is_floating_point()),
        input_size=size[0],
        channels=taken.channels,
        inferred=told("a program of torch.export", activation, alone)
        + _AUTOCAST * autocast
        + (found.inferred if found is not None else ()),
        spec=spec,
        hint=hint(activation, numbers) if found is None else None,
        graph=_graph(program, shape) if alone else None,
        preprocessing=inferred,
        labels=found.labels if found is not None else None,
        task=found.task if found is not None else None,
        ends=(
            f"input {quoted(image)}: {_words(dtype, form)}",
            *(
                f"output {quoted(name)}: {_words(DTYPES[meta[value]['dtype']], _form(meta[value]))}"
                for name, value in zip(names, outputs, strict=True)
            ),
        ),
    )


def _places(found: Objects) -> tuple[int, ...]:
    """The numbers of the outputs that count."""
    return (found.outputs,) if isinstance(found.outputs, int) else found.outputs.places


def _reader(found: Objects) -> Callable[[Sequence[Tensor]], Tensor]:
    """What makes rows of the outputs."""
    outputs = found.outputs
    if isinstance(outputs, int):
        return lambda given: program_objects.pixel_scores(given[0])
    return lambda given: program_objects.table(given, outputs)


def _words(dtype: torch.dtype, form: Form) -> str:
    sides = ",".join("?" if side is None else str(side) for side in form)
    return f"{str(dtype).removeprefix('torch.')} [{sides}]"


def _form(meta: Mapping[str, Any]) -> Form:
    return tuple(side.get("as_int") if isinstance(side, dict) else None for side in meta["sizes"])


def _inputs(signature: Any, archive: pt2.Archive, file: str) -> tuple[dict[str, Tensor], str]:
    """The tensors that the program is given, by its names for them, and the name of the image."""
    weights: dict[str, Tensor] = {}
    images: list[str] = []
    for spec in signature["input_specs"]:
        ((role, value),) = spec.items()
        match role:
            case "user_input" if "as_tensor" in value["arg"]:
                images.append(value["arg"]["as_tensor"]["name"])
            case "parameter":
                weights[value["arg"]["name"]] = _tensor(archive.weights[value["parameter_name"]])
            case "buffer":
                name = value["buffer_name"]
                stored = archive.weights.get(name) or archive.constants[name]
                weights[value["arg"]["name"]] = _tensor(stored)
            case "tensor_constant":
                weights[value["arg"]["name"]] = _tensor(archive.constants[value["tensor_constant_name"]])
            case _:
                raise ArchitectureError(
                    f"{file}: has an input that is not an image ({quoted(role)}); export the model with "
                    "the image as its only input"
                )
    if len(images) != 1:
        raise ArchitectureError(
            f"{file}: has {len(images)} inputs ({some(images)}); export the model with the image as its "
            "only input"
        )
    return weights, images[0]


def _tensor(stored: Stored) -> Tensor:
    dtype = DTYPES[stored.dtype]
    if not stored.data or 0 in stored.sizes:
        return torch.zeros(stored.sizes, dtype=dtype)
    flat = torch.frombuffer(stored.data, dtype=dtype)
    tensor = flat.as_strided(stored.sizes, stored.strides, stored.offset)
    if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
        raise WeightsError(
            "its weights contain NaN or infinity, so the training probably diverged; export an earlier "
            "checkpoint"
        )
    return tensor.clone() if stored.sizes else tensor


def _outputs(signature: Any, file: str) -> list[str]:
    found = []
    for spec in signature["output_specs"]:
        ((role, value),) = spec.items()
        if role != "user_output":
            raise ArchitectureError(
                f"{file}: changes its own weights as it runs ({quoted(role)}); call model.eval() before the "
                "export"
            )
        if "as_tensor" in value["arg"]:
            found.append(value["arg"]["as_tensor"]["name"])
    if not found:
        raise ArchitectureError(f"{file}: returns nothing")
    return found


def _output_names(module: Any, outputs: Sequence[str]) -> list[str]:
    """The outputs by the keys of the dictionary that the model answered with, where it did with one."""
    calls = module.get("module_call_graph") or [{}]
    spec = (calls[0].get("signature") or {}).get("out_spec", "")
    try:
        context = documents.parse_json(spec)[1]["context"]
        keys = documents.parse_json(context) if isinstance(context, str) else context
    except (ValueError, LookupError, TypeError):
        keys = None
    named = isinstance(keys, list) and len(keys) == len(outputs) and all(isinstance(key, str) for key in keys)
    return list(keys) if named and keys else list(outputs)


def _nodes(graph: Any, file: str) -> tuple[list[Any], bool]:
    """The calls of the program, and whether some were to run in another precision, under torch.autocast."""
    if len(graph["nodes"]) > NODES:
        raise ArchitectureError(f"{file}: has {len(graph['nodes'])} calls; the limit is {NODES}")
    inlined = program_blocks.inline(graph["nodes"], NODES)
    nodes = inlined.nodes
    if unknown := sorted({node["target"] for node in nodes if function(node["target"]) is None}):
        raise ArchitectureError(
            f"{file}: calls {some(unknown)}, which is not among the operators that are allowed; export the "
            "model to ONNX"
        )
    return nodes, inlined.autocast


_SHAPING = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "to", "_to_copy", "clone", "contiguous"}


def _without_activation(calls: list[Call], output: str) -> tuple[list[Call], str, str]:
    """The calls without the softmax or sigmoid at their end, which value then counts, and what it was."""
    makers = {name: call for call in calls for name in call.results}
    name = output
    while (call := makers.get(name)) is not None:
        name_of = kind(call.target)
        first = next(iter(call.arguments.values()), None)
        if not isinstance(first, Value):
            break
        if name_of in _SHAPING:
            name = first.name
            continue
        if name_of in ("softmax", "_softmax", "log_softmax", "_log_softmax"):
            return calls, first.name, "softmax"
        if name_of in ("sigmoid", "sigmoid_"):
            return calls, first.name, "sigmoid"
        break
    return calls, output, ""


def _first_scale(
    calls: Sequence[Call], image: str, weights: Mapping[str, Tensor]
) -> tuple[float, float] | None:
    """What the program does first with a value of the image; see `exported_graph.first_scale`."""
    factor, offset, name, found = np.ones(1), np.zeros(1), image, False
    for call in calls:
        does = kind(call.target).removesuffix("_")
        if name not in call.needs:
            continue
        first, *others = call.arguments.values()
        if does not in {"add", "sub", "mul", "div", "to"} or not (
            isinstance(first, Value) and first.name == name
        ):
            break
        name = call.results[0]
        if does == "to":
            continue
        other = weights.get(others[0].name) if isinstance(others[0], Value) else others[0]
        if other is None or call.arguments.get("alpha", 1) != 1:
            break
        value = np.asarray(other, np.float64).ravel()
        if value.size not in (1, 3):
            break
        if does in ("add", "sub"):
            offset = offset + (value if does == "add" else -value)
        else:
            scale = value if does == "mul" else 1 / value
            factor, offset = factor * scale, offset * scale
        found = True
    return (float(np.mean(factor)), float(np.mean(offset))) if found else None


def _check_size(program: Program, shape: tuple[int, ...], batch: int, file: str) -> None:
    """Run the program without values, so that what would be computed is known before memory is spent."""

    class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for one in made if isinstance(made, tuple | list) else (made,):
                if isinstance(one, Tensor) and one.numel() * one.element_size() > VALUES:
                    raise ArchitectureError(
                        f"{file}: computes a value of {one.numel() * one.element_size()} bytes for an image "
                        f"of {shape[1]} x {shape[2]} pixels; at most {VALUES} are allowed"
                    )
            return made

    blank = copy.copy(program)
    blank._buffers = {
        name: tensor.to("meta") for name, tensor in program._buffers.items() if tensor is not None
    }
    try:
        with torch.no_grad(), Sizes():  # type: ignore[no-untyped-call]
            blank(torch.zeros(batch, *shape, device="meta"))
    except ArchitectureError:
        raise
    except Exception as error:  # operators raise whatever their arguments provoke
        raise ArchitectureError(
            f"{file}: cannot be computed for images of {shape[1]} x {shape[2]} pixels: {quoted(error, 200)}"
        ) from error


def _checked(program: Program, shape: tuple[int, ...], batch: int | None, file: str) -> tuple[int, bool]:
    """How many numbers the program gives for an image, and whether it computes a fixed number of images.

    Sets `program.batch` where it does.
    """
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, *shape, generator=generator)
    versions = [tensor._version for tensor in program.buffers()]
    try:
        with torch.no_grad():
            program.batch = batch or 1
            expected = torch.cat([program(one[None]) for one in pair])
            program.batch = None
            try:
                free = program(pair)
                same = free.shape == expected.shape and bool(
                    (free - expected).abs().max() <= _SAME * (1 + expected.abs().max())
                )
            except (RuntimeError, ValueError, IndexError):
                same = False
    except Exception as error:  # operators raise whatever their arguments provoke
        raise ArchitectureError(f"{file}: cannot be computed: {quoted(error, 200)}") from error
    if versions != [tensor._version for tensor in program.buffers()]:
        raise ArchitectureError(
            f"{file}: changes its own weights as it runs; call model.eval() before the export"
        )
    if expected.ndim != 2 or not bool(expected.isfinite().all()):
        raise ArchitectureError(f"{file}: its answer to random pixels is not a row of numbers")
    program.batch = None if same else batch or 1
    return expected.shape[1], not same


def _graph(program: Program, shape: tuple[int, int, int]) -> Any:
    """OpenVINO's graph of a program with a fixed batch; None where only PyTorch can run it."""
    from pthserve.engines import exported_graph

    try:
        return exported_graph.of_module(program, shape, program.batch or 1)
    except EngineError:
        return None
