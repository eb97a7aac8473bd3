"""Exported models: `.onnx`, and `.pt2` of `torch.export.save`. They bring their computation.

An ONNX file is read by OpenVINO and never by torch. What an exported model does not tell is what was done
with an image before it, unless its sizes are fixed or its first operations normalise it.
"""

from functools import partial
from typing import IO, TYPE_CHECKING, Any

from pthserve.errors import ArchitectureError, WeightsError
from pthserve.files import formats, onnx_files
from pthserve.text import quoted
from pthserve.zoos import exported_objects
from pthserve.zoos.base import DEFAULT_SIZE, Architecture, Source
from pthserve.zoos.exported_ends import Form, ImageInput, chosen, hint, told
from pthserve.zoos.exported_objects import Objects
from pthserve.zoos.layout import some

if TYPE_CHECKING:
    from pthserve.engines.exported_graph import Adapted

DOMAINS = ("com.microsoft", "org.openvinotoolkit")
"""Of operators beside ONNX's own, of which OpenVINO knows some."""
REFUSED = {"Loop", "Scan", "SequenceMap", "Optional"}
"""Operators of ONNX that a file could keep a processor busy with for ever, or that no classifier has."""


class Exported:
    """Exported models; see `Zoo`."""

    def claims(self, source: Source) -> bool:
        """Whether the file is an exported model."""
        return source.format in formats.EXPORTED

    def build(self, source: Source) -> Architecture:
        """The exported model; see `Zoo`."""
        if source.architecture:
            raise ArchitectureError(
                "an exported model contains its architecture; remove "
                f"`architecture: {quoted(source.architecture)}` from model.yaml"
            )
        if unknown := source.kwargs.keys() - {"output"}:
            raise ArchitectureError(
                "kwargs: an exported model accepts only `output`, the name of the output to serve, not "
                f"{some(unknown)}"
            )
        assert source.content is not None
        if source.format == formats.ONNX:
            try:
                return _onnx(source, source.content)
            except UnicodeDecodeError as error:
                raise ArchitectureError("it has names that are not text; export it again") from error
        from pthserve.zoos.exported_program import build  # with torch

        return build(source, source.content)


def _onnx(source: Source, content: IO[bytes]) -> Architecture:
    from pthserve.engines import exported_graph

    file = source.path.name if source.path else "the model"
    _check_operators(content, file)
    graph = exported_graph.read(content, source.beside, file)
    ends = tuple(exported_graph.ends(graph))
    if len(graph.inputs) != 1:
        raise ArchitectureError(
            f"{file}: has {len(graph.inputs)} inputs ({'; '.join(ends)}); export the model with the image as "
            "its only input"
        )
    names = [exported_graph.name(end) for end in graph.outputs]
    forms = [_form(end) for end in graph.outputs]
    metadata = exported_graph.metadata(graph)
    image = ImageInput.of(_form(graph.input(0)), file)
    kind = graph.input(0).element_type
    scale = (1 / 255, 0.0) if kind.is_integral() else exported_graph.first_scale(graph)
    objects = exported_objects.has_objects(source.task, source.kwargs.get("output"), forms, metadata)
    size = image.size(source.spec, file, exported_objects.SIDE if objects else DEFAULT_SIZE)
    spec, inferred = image.preprocessing(source.spec, size, scale, whole=kind.is_integral())
    shape = (image.channels, *size)
    common: dict[str, Any] = {
        "name": "onnx",
        "module": None,
        "prefix": "",
        "input_size": size[0],
        "channels": image.channels,
        "ends": ends,
    }
    if objects:
        forms = [_form(end) for end in exported_graph.sized(graph, shape, image.channels_last).outputs]
        found = exported_objects.read(
            source.task, source.labels, exported_objects.Ends(names, forms, metadata, size, file)
        )
        activation, adapted = _objects(graph, found, shape, image)
        spec, inferred = exported_objects.preprocessing(found, spec, inferred)
        return Architecture(
            num_classes=found.classes,
            parameters=adapted.parameters,
            inferred=(*told("an ONNX model", activation, adapted.alone), *found.inferred),
            spec=spec,
            preprocessing=inferred,
            graph=adapted.graph,
            labels=found.labels,
            task=found.task,
            **common,
        )
    output = chosen(names, forms, source.kwargs.get("output"), file)
    adapted = exported_graph.adapt(graph, output, shape, channels_last=image.channels_last)
    return Architecture(
        num_classes=adapted.outputs,
        parameters=adapted.parameters,
        inferred=told("an ONNX model", adapted.activation, adapted.alone),
        spec=spec,
        hint=hint(adapted.activation, adapted.outputs),
        graph=adapted.graph,
        preprocessing=inferred,
        **common,
    )


def _objects(
    graph: Any, found: Objects, shape: tuple[int, int, int], image: ImageInput
) -> tuple[str, "Adapted"]:
    """The graph as `found.task` reads it, and the activation that was taken out of it."""
    from pthserve.engines import exported_graph, object_graphs

    adapt = partial(exported_graph.adapt, shape=shape, channels_last=image.channels_last)
    if isinstance(found.outputs, int):
        place = found.outputs
        graph = graph.clone()
        activation = exported_graph.without_activation(graph, place)
        return activation, adapt(graph, lambda sized: object_graphs.pixel_scores(sized, place))
    boxes, most = found.outputs, found.most
    return "", adapt(
        graph,
        lambda sized: object_graphs.table(sized, boxes, most),
        unordered=True,
    )


def _check_operators(content: IO[bytes], file: str) -> None:
    try:
        operators = onnx_files.operators(content)
    except WeightsError as error:
        raise ArchitectureError(f"{file}: {error}") from error
    custom = [name for name in operators if "::" in name and name.partition("::")[0] not in DOMAINS]
    if custom:
        raise ArchitectureError(
            f"{file}: needs {some(sorted(custom))}, which ONNX does not define; export the model without "
            "custom operators"
        )
    if refused := operators & REFUSED:
        raise ArchitectureError(
            f"{file}: contains a loop ({some(sorted(refused))}), which is not run; export the model "
            "without loops"
        )


def _form(end: Any) -> Form:
    shape = end.partial_shape
    if shape.rank.is_dynamic:
        return ()
    return tuple(side.get_length() if side.is_static else None for side in shape)
