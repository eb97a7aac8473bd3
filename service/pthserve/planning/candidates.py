"""Candidates: the engines and precisions that can run a model on this machine, and how they are made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pthserve.engines.base import Engine
from pthserve.engines.quantized_graph import Quantization, weight_bits
from pthserve.errors import EngineError
from pthserve.images.spec import Spec
from pthserve.options import ModelOptions
from pthserve.planning.plan import Plan
from pthserve.tasks.base import Task
from pthserve.tasks.classification import CLASSIFICATION

if TYPE_CHECKING:
    from torch import nn

CANDIDATES = {
    "cpu": (
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("openvino", "fp16"),
        ("openvino", "int8"),
        ("torch", "bf16"),
        ("torch", "fp32"),
    ),
    "cuda": (("torch", "fp32"), ("torch", "tf32"), ("torch", "fp16"), ("torch", "bf16")),
}
"""Engines and precisions by device, the most reliable first: fp32, and on a CPU OpenVINO, which is faster
than PyTorch at the same precision for every family of torchvision."""


LARGE_BATCH = 32
"""The largest batch on a GPU, and the largest that is measured."""

ONLY_TORCH = (
    "only PyTorch at fp32 runs a detector, a segmentation model, or a model whose images are not cropped"
)
"""Why another engine, precision or a pack is refused; see `varies`."""


class Quantized(NamedTuple):
    """A graph at int8, and what of it is."""

    graph: Any
    how: Quantization


class Candidate(NamedTuple):
    """The configuration of an engine."""

    engine: str
    precision: str
    device: str
    threads: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.engine} {self.precision} on {self.device if self.device != 'cpu' else threads}"


@dataclass(slots=True)
class EngineFactory:
    """Makes the engines of one model.

    Attributes:
        module: The model in eval mode; None for a packed model, which has only `graph`.
        spec: Its preprocessing.
        options: How it is loaded.
        task: How its answers are compared.
        graph: The OpenVINO graph of the module; `prepare` makes it if it is None.
        quantized: At int8; None if the model was not quantised. `auto` selects int8 only if it is given.
    """

    module: "nn.Module | None"
    spec: Spec
    options: ModelOptions
    task: Task = CLASSIFICATION
    graph: Any = None
    quantized: Quantized | None = None

    @property
    def varies(self) -> bool:
        """Whether the computation depends on the image; see `varies`."""
        return varies(self.module, self.spec)

    @property
    def unmeasured_batch(self) -> int:
        """The largest batch where none was measured.

        A pass of a detector is long, and mostly computes one image after the other. A GPU needs large batches
        to be busy: an H100 runs a ResNet-50 at fp32 at 350 images per second one by one, and at 2,100 in
        batches of 32.
        """
        if self.varies:
            return 1
        return LARGE_BATCH if self.device() == "cuda" else Plan().max_batch

    def candidates(self) -> list[Candidate]:
        """Return the candidates that the options allow; for `auto`, those that this machine runs natively.

        Raises:
            EngineError: There is none.
        """
        options, device = self.options, self.device()
        if self.varies and (options.engine == "openvino" or options.precision not in ("auto", "fp32")):
            raise EngineError(f"{ONLY_TORCH}; leave out --engine and --precision")
        auto = dict(self._auto(device))
        candidates = [
            Candidate(engine, precision, device, options.cpus)
            for engine, precision in CANDIDATES[device]
            if engine in auto
            and options.engine in ("auto", engine)
            and (
                options.precision == precision or (options.precision == "auto" and precision in auto[engine])
            )
        ]
        if not candidates:
            raise EngineError(
                f"precision {options.precision} is not available on {device} with engine {options.engine}; "
                "available: "
                + ", ".join(
                    f"{engine} {precision}" for engine, precision in CANDIDATES[device] if engine in auto
                )
            )
        return candidates

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        """Convert the model if `candidates` need it.

        Raises:
            EngineError: OpenVINO cannot convert the module.
        """
        if self.graph is None and any(candidate.engine == "openvino" for candidate in candidates):
            from pthserve.engines.openvino_engine import convert

            assert self.module is not None
            self.graph = convert(self.module, self.spec)

    def make(self, candidate: Candidate) -> Engine:
        """Make the engine of a candidate that was prepared; raises EngineError."""
        name, precision, device, threads = candidate
        if name == "torch":
            from pthserve.engines.torch_engine import TorchEngine

            assert self.module is not None
            return TorchEngine(self.module, self.spec, precision=precision, threads=threads, device=device)
        from pthserve.engines.openvino_engine import OpenVINOEngine

        cache, rest = self.options.cache_dir, "fp32"
        graph = self.graph
        if precision == "int8":
            assert self.quantized is not None
            if self.quantized.how.weight_bits > weight_bits():
                raise EngineError(_NEEDS_VNNI)
            graph, rest = self.quantized.graph, self.quantized.how.rest
        return OpenVINOEngine(
            graph, self.spec, precision=precision, threads=threads, cache_dir=cache, rest=rest
        )

    def device(self) -> str:
        """Return the device that runs the model: `cpu` or `cuda`."""
        return device(self.options, self.module)

    def _auto(self, device: str) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield the engines that can be made and the precisions that `auto` allows; int8 only from a pack."""
        if self.varies:
            yield "torch", ("fp32",)
            return
        if device == "cpu":
            from pthserve.engines import openvino_engine

            usable = self.quantized is not None and self.quantized.how.weight_bits <= weight_bits()
            yield "openvino", [name for name in openvino_engine.precisions() if name != "int8" or usable]
        if self.module is not None:
            from pthserve.engines import torch_engine

            yield "torch", torch_engine.precisions(device)


def varies(module: "nn.Module | None", spec: Spec) -> bool:
    """Whether what is computed depends on the image: on its shape, as nothing is cropped, or on its objects.

    PyTorch at fp32 is then the only engine: OpenVINO converts a module for images of one shape.
    """
    return spec.whole or getattr(module, "varies", False)


def device(options: ModelOptions, module: "nn.Module | None") -> str:
    """Return `cpu` or `cuda`: what the options name, or else a GPU if there is one that runs the module."""
    if options.device != "auto":
        return options.device
    if module is None or options.engine == "openvino" or options.precision == "int8":
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


_NEEDS_VNNI = (
    "the model was quantised with weights of 8 bits, which need VNNI or AMX, and this processor has neither: "
    "their sums would saturate; pack it again with --weight-bits 7, or use another --precision"
)
