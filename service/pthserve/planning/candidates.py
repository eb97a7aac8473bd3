"""Candidates: which engines and precisions a model can be run with on this machine, and how each is made."""

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
    "cuda": (("torch", "fp32"), ("torch", "fp16"), ("torch", "bf16")),
}
"""Engine and precision, by device, the safest bet first: fp32, and on OpenVINO, which has been quicker than
PyTorch at the same precision for every family of torchvision's."""

CALIBRATION_IMAGES = 300
"""At most so many images of the calibration folder are used; NNCF's own default."""


class Candidate(NamedTuple):
    """What an engine is made with."""

    engine: str
    precision: str
    device: str
    threads: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.engine} {self.precision} on {self.device if self.device != 'cpu' else threads}"


@dataclass(slots=True)
class Sources:
    """What engines are made from: a module, OpenVINO's graph of it, its int8 graph; what there is of them."""

    module: "nn.Module | None"
    spec: Spec
    settings: ModelOptions
    task: Task = CLASSIFICATION
    graph: Any = None
    quantized: Any = None

    def candidates(self) -> list[Candidate]:
        """What the settings ask for, and, where they say `auto`, what this machine computes natively.

        Raises:
            EngineError: there is no such thing.
        """
        asked, device = self.settings, self._device()
        auto = dict(self._auto(device))
        found = [
            Candidate(engine, precision, device, asked.cpus)
            for engine, precision in CANDIDATES[device]
            if engine in auto
            and asked.engine in ("auto", engine)
            and (asked.precision == precision or (asked.precision == "auto" and precision in auto[engine]))
        ]
        if not found:
            raise EngineError(
                f"precision {asked.precision} is not available on {device} with engine {asked.engine}; "
                "available: "
                + ", ".join(
                    f"{engine} {precision}" for engine, precision in CANDIDATES[device] if engine in auto
                )
            )
        return found

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        """Convert and quantise, where `candidates` need it.

        Raises:
            EngineError: OpenVINO cannot express the module, there is nothing to calibrate int8 on, or a pack
                has no int8.
        """
        if self.graph is None and any(candidate.engine == "openvino" for candidate in candidates):
            from pthserve.engines.openvino_engine import convert

            assert self.module is not None
            self.graph = convert(self.module, self.spec)
        if self.quantized is None and any(candidate.precision == "int8" for candidate in candidates):
            if self.module is None:
                raise EngineError(
                    "the model was packed without int8; pack it again with --precision int8 --calibration "
                    "FOLDER"
                )
            from pthserve.engines.openvino_engine import quantize

            images = calibration_images(self.settings.calibration, self.spec)
            self.quantized = quantize(self.graph, normalise(images, self.spec))

    def engine(self, candidate: Candidate) -> Engine:
        """The engine of `candidate`, which was prepared; raises EngineError."""
        name, precision, device, threads = candidate
        if name == "torch":
            from pthserve.engines.torch_engine import TorchEngine

            assert self.module is not None
            return TorchEngine(self.module, self.spec, precision=precision, threads=threads, device=device)
        from pthserve.engines.openvino_engine import OpenVINOEngine

        graph = self.quantized if precision == "int8" else self.graph
        cache = self.settings.cache_dir
        return OpenVINOEngine(graph, self.spec, precision=precision, threads=threads, cache_dir=cache)

    def expected(self, images: Pixels) -> NDArray[np.float32]:
        """What every candidate must agree with: of PyTorch at fp32, or of OpenVINO without a module."""
        name = "torch" if self.module is not None else "openvino"
        engine = self.engine(Candidate(name, "fp32", "cpu", self.settings.cpus))
        answers = np.concatenate([self.task.scores(engine(image[None])) for image in images])
        engine.close()
        return answers

    def _device(self) -> str:
        if self.settings.device != "auto":
            return self.settings.device
        if self.module is None or self.settings.engine == "openvino" or self.settings.precision == "int8":
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def _auto(self, device: str) -> Iterator[tuple[str, Sequence[str]]]:
        """The engines that can be made, and which of their precisions `auto` takes: int8 only from a pack."""
        if device == "cpu":
            from pthserve.engines import openvino_engine

            left_out = "int8" if self.quantized is None else ""
            yield "openvino", [name for name in openvino_engine.precisions() if name != left_out]
        if self.module is not None:
            from pthserve.engines import torch_engine

            yield "torch", torch_engine.precisions(device)


def calibration_images(folder: Path | None, spec: Spec) -> Pixels:
    """Images of `folder` as a model sees them: uint8 (n, height, width, channels).

    Subfolders are looked into, and what is no image is passed over. Of more files than CALIBRATION_IMAGES,
    evenly spread ones are taken.

    Raises:
        EngineError: no folder is named, or there is no image in it.
    """
    if folder is None:
        raise EngineError("int8 needs calibration images: set --calibration to a folder of images")
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    images: list[Pixels] = []
    for index in np.unique(np.linspace(0, len(found) - 1, CALIBRATION_IMAGES).astype(int)) if found else ():
        try:
            images.append(
                crop(regular_files.read(found[index], regular_files.IMAGE), spec, max_pixels=OWN_MAX_PIXELS)
            )
        except (RequestError, OSError):
            continue
    if not images:
        raise EngineError(f"{folder}: contains no image for int8 calibration")
    return np.stack(images)
