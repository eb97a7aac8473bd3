"""Candidates: the engines and precisions that can run a model on this machine, and how they are made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Engine
from pthserve.errors import EngineError, RequestError
from pthserve.files import regular_files
from pthserve.images.preprocess import OWN_MAX_PIXELS, Pixels, crop, normalise
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

CALIBRATION_IMAGES = 300
"""Maximum number of images used from the calibration folder; the default of NNCF."""


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
        quantized: The int8 graph; likewise. `auto` selects int8 only if it is given.
    """

    module: "nn.Module | None"
    spec: Spec
    options: ModelOptions
    task: Task = CLASSIFICATION
    graph: Any = None
    quantized: Any = None

    @property
    def unmeasured_batch(self) -> int:
        """The largest batch where none was measured; a detector's pass is long, and does one image after the
        other where it counts."""
        return 1 if self._varies else Plan().max_batch

    @property
    def _varies(self) -> bool:
        """Whether the model runs on images of any shape, or does what follows from an image."""
        return self.spec.whole or getattr(self.module, "varies", False)

    def candidates(self) -> list[Candidate]:
        """Return the candidates that the options allow; for `auto`, those that this machine runs natively.

        Raises:
            EngineError: There is none.
        """
        options, device = self.options, self._device()
        if self._varies and (options.engine == "openvino" or options.precision not in ("auto", "fp32")):
            raise EngineError(
                "a detector, or a model whose images are not cropped, is run by PyTorch at fp32, and cannot "
                "be packed: serve its weights, with --engine torch and --precision fp32, or leave these out"
            )
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
        """Convert and quantise the model if `candidates` need it.

        Raises:
            EngineError: OpenVINO cannot convert the module, there are no calibration images for int8, or a
                packed model has no int8 graph.
        """
        if self.graph is None and any(candidate.engine == "openvino" for candidate in candidates):
            from pthserve.engines.openvino_engine import convert

            assert self.module is not None
            self.graph = convert(self.module, self.spec)
        if self.quantized is None and any(candidate.precision == "int8" for candidate in candidates):
            if self.module is None and self.options.calibration is None:
                raise EngineError(
                    "the model has no int8; pack it again with --precision int8 --calibration FOLDER"
                )
            from pthserve.engines.openvino_engine import quantize

            images = calibration_images(self.options.calibration, self.spec)
            self.quantized = quantize(self.graph, normalise(images, self.spec))

    def make(self, candidate: Candidate) -> Engine:
        """Make the engine of a candidate that was prepared; raises EngineError."""
        name, precision, device, threads = candidate
        if name == "torch":
            from pthserve.engines.torch_engine import TorchEngine

            assert self.module is not None
            return TorchEngine(self.module, self.spec, precision=precision, threads=threads, device=device)
        from pthserve.engines.openvino_engine import OpenVINOEngine

        graph = self.quantized if precision == "int8" else self.graph
        cache = self.options.cache_dir
        return OpenVINOEngine(graph, self.spec, precision=precision, threads=threads, cache_dir=cache)

    def reference(self, images: Pixels) -> NDArray[np.float32]:
        """Return the scores that candidates must agree with: of PyTorch at fp32, or of OpenVINO at fp32."""
        name = "torch" if self.module is not None else "openvino"
        engine = self.make(Candidate(name, "fp32", "cpu", self.options.cpus))
        scores = np.concatenate([self.task.scores(engine(image[None])) for image in images])
        engine.close()
        return scores

    def _device(self) -> str:
        if self.options.device != "auto":
            return self.options.device
        if self.module is None or self.options.engine == "openvino" or self.options.precision == "int8":
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def _auto(self, device: str) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield the engines that can be made and the precisions that `auto` allows; int8 only from a pack."""
        if self._varies:
            yield "torch", ("fp32",)
            return
        if device == "cpu":
            from pthserve.engines import openvino_engine

            excluded = "int8" if self.quantized is None else ""
            yield "openvino", [name for name in openvino_engine.precisions() if name != excluded]
        if self.module is not None:
            from pthserve.engines import torch_engine

            yield "torch", torch_engine.precisions(device)


def calibration_images(folder: Path | None, spec: Spec) -> Pixels:
    """Read and preprocess the images of `folder`: uint8 (n, height, width, channels).

    Subfolders are included, and files that are not images are skipped. If there are more than
    CALIBRATION_IMAGES files, evenly spaced ones are used.

    Raises:
        EngineError: There is no folder, or it contains no image.
    """
    if folder is None:
        raise EngineError("int8 needs calibration images: set --calibration to a folder of images")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images: list[Pixels] = []
    for index in np.unique(np.linspace(0, len(files) - 1, CALIBRATION_IMAGES).astype(int)) if files else ():
        try:
            images.append(
                crop(regular_files.read(files[index], regular_files.IMAGE), spec, max_pixels=OWN_MAX_PIXELS)
            )
        except (RequestError, OSError):
            continue
    if not images:
        raise EngineError(f"{folder}: contains no image for int8 calibration")
    return np.stack(images)
