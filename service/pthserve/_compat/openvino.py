"""OpenVINO: converting a PyTorch module without `openvino.convert_model`, with undocumented modules.

Written for OpenVINO 2026.4; `tests/engines` covers all of it.
"""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openvino


def runtime() -> Any:
    """Import `openvino` without its conversion tools.

    The tools take half of the import time, write into ~/intel, report each import to Google Analytics and set
    the root logger to ERROR. `import openvino` does without them if they cannot be imported.
    """
    for module in ("openvino.tools.ovc", "openvino_telemetry"):
        sys.modules.setdefault(module, None)  # type: ignore[arg-type]
    import openvino

    return openvino


def supported_operators() -> Iterable[Any]:
    """Return the composite operators that OpenVINO converts, which need not be decomposed."""
    runtime()  # before anything of it is imported
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose

    operators: Iterable[Any] = ops_to_not_decompose()
    return operators


def graph_of(exported: Any) -> "openvino.Model":
    """Convert a `torch.fx.GraphModule`. Its parameters are shared with the graph, not copied.

    As `TorchFXPythonDecoder.from_exported_program`, which logs each operator that it does not know.
    """
    ov = runtime()
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    frontend = ov.frontend.FrontEndManager().load_by_framework("pytorch")
    decoder = TorchFXPythonDecoder(exported, dynamic_shapes=True)  # OpenVINO calls it, and does not own it
    return frontend.convert(frontend.load(decoder))


def graph_of_trace(trace: Any, image: Any) -> "openvino.Model":
    """Convert the result of `torch.jit.trace`, called with the tensor `image`."""
    ov = runtime()
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = ov.frontend.FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(trace, example_input=(image,))
    return frontend.convert(frontend.load(decoder))


def fold_constants(graph: "openvino.Model") -> None:
    """Fold what depends on the weights alone, such as a batch normalisation into a convolution, in place."""
    from openvino._offline_transformations import apply_moc_transformations

    apply_moc_transformations(graph, cf=True)
