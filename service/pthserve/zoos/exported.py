"""Exported models: `.onnx`, and `.pt2` of `torch.export.save`. They bring their computation.

An ONNX file is read by OpenVINO and never by torch. What an exported model does not tell is what was done
with an image before it, unless its sizes are fixed or its first operations normalise it.
"""

from typing import IO, Any

from pthserve.errors import ArchitectureError, WeightsError
from pthserve.files import formats, onnx_files
from pthserve.text import quoted
from pthserve.zoos.base import Architecture, Source
from pthserve.zoos.exported_ends import Form, ImageInput, chosen, hint, told
from pthserve.zoos.layout import some

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
    output = chosen(names, forms, source.kwargs.get("output"), file)
    image = ImageInput.of(_form(graph.input(0)), file)
    kind = graph.input(0).element_type
    scale = (1 / 255, 0.0) if kind.is_integral() else exported_graph.first_scale(graph)
    size = image.size(source.spec, file)
    adapted = exported_graph.adapt(graph, output, (image.channels, *size), channels_last=image.channels_last)
    spec, inferred = image.preprocessing(source.spec, size, scale, whole=kind.is_integral())
    return Architecture(
        "onnx",
        None,
        num_classes=adapted.outputs,
        prefix="",
        parameters=adapted.parameters,
        input_size=size[0],
        channels=image.channels,
        inferred=told("an ONNX model", adapted.activation, adapted.alone),
        spec=spec,
        hint=hint(adapted.activation, adapted.outputs),
        graph=adapted.graph,
        preprocessing=inferred,
        ends=ends,
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
