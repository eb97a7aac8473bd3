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
from pthserve.tasks.base import Task, finds
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

ONLY_TORCH = "only PyTorch at fp32 runs "
"""Begins the reason why another engine, precision or a pack is refused; see `only_torch`."""
NO_INT8 = (
    "a detector or a segmentation model is not quantised to int8: use --precision fp32 or bf16, or leave out "
    "--precision"
)


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
        sparing: Whether engines leave parts that they work without to `Completes.complete`.
    """

    module: "nn.Module | None"
    spec: Spec
    options: ModelOptions
    task: Task = CLASSIFICATION
    graph: Any = None
    quantized: Quantized | None = None
    sparing: bool = False

    @property
    def only_torch(self) -> str:
        """Why no engine but PyTorch runs the model, or ""; see `only_torch`."""
        return only_torch(self.module, self.task, self.spec)

    @property
    def heavy(self) -> bool:
        """Whether a pass takes as long as a hundred of a usual classifier's; see `heavy`."""
        return heavy(self.task, self.spec)

    @property
    def unmeasured_batch(self) -> int:
        """The largest batch where none was measured.

        A pass of a detector is long, and mostly computes one image after the other. A GPU needs large batches
        to be busy: an H100 runs a ResNet-50 at fp32 at 350 images per second one by one, and at 2,100 in
        batches of 32.
        """
        if self.heavy:
            return 1
        return LARGE_BATCH if self.device() == "cuda" else Plan().max_batch

    def candidates(self) -> list[Candidate]:
        """Return the candidates that the options allow; for `auto`, those that this machine runs natively.

        Raises:
            EngineError: There is none.
        """
        options, device = self.options, self.device()
        if self.only_torch and (options.engine == "openvino" or options.precision not in ("auto", "fp32")):
            raise EngineError(f"{self.only_torch}; leave out --engine and --precision")
        if self.heavy and options.precision == "int8":
            raise EngineError(NO_INT8)
        auto = dict(self._auto(device))
        candidates = [
            Candidate(engine, precision, device, options.cpus)
            for engine, precision in CANDIDATES[device]
            if engine in auto
            and not (self.heavy and engine == "torch" and precision != "fp32")
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
            EngineError: OpenVINO cannot convert the module, or the model is not quantised.
        """
        if self.heavy and any(candidate.precision == "int8" for candidate in candidates):
            raise EngineError(NO_INT8)
        if self.graph is None and any(candidate.engine == "openvino" for candidate in candidates):
            from pthserve.engines.openvino_graph import convert

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

        rest = "fp32"
        graph = self.graph
        if precision == "int8":
            assert self.quantized is not None
            if self.quantized.how.weight_bits > weight_bits():
                raise EngineError(_NEEDS_VNNI)
            graph, rest = self.quantized.graph, self.quantized.how.rest
        return OpenVINOEngine(
            graph,
            self.spec,
            precision=precision,
            threads=threads,
            cache_dir=self.options.cache_dir,
            rest=rest,
            sparing=self.sparing,
        )

    def device(self) -> str:
        """Return the device that runs the model: `cpu` or `cuda`."""
        return device(self.options, self.module)

    def _auto(self, device: str) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield the engines that can be made and the precisions that `auto` allows; int8 only from a pack."""
        if device == "cpu" and not self.only_torch:
            from pthserve.engines import openvino_engine

            usable = self.quantized is not None and self.quantized.how.weight_bits <= weight_bits()
            yield "openvino", [name for name in openvino_engine.precisions() if name != "int8" or usable]
        if self.heavy and self.module is not None:
            yield "torch", ("fp32",)
        elif self.module is not None:
            from pthserve.engines import torch_engine

            yield "torch", torch_engine.precisions(device)


def only_torch(module: "nn.Module | None", task: Task, spec: Spec) -> str:
    """Why PyTorch at fp32 is the only engine of a model, or "".

    OpenVINO converts a module for images of one shape, unless it is made to be traced; such a module may have
    `only_torch`, what it is that OpenVINO cannot run.
    """
    traceable = finds(task) if module is None else getattr(module, "varies", False)
    if spec.whole and not traceable:
        return f"{ONLY_TORCH}a classifier whose images are not cropped"
    what: str = getattr(module, "only_torch", "")
    return what and ONLY_TORCH + what


def heavy(task: Task, spec: Spec) -> bool:
    """Whether a pass takes as long as a hundred of a usual classifier's.

    It is of a large image that is not cropped, or finds its objects or the classes of its pixels.
    """
    return spec.whole or finds(task)


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
