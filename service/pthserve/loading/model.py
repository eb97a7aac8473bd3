"""Model: what is served, and what a script calls with images."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from threading import BoundedSemaphore, Event
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pthserve.certainty import Inferred
from pthserve.engines.base import Engine, Resizable
from pthserve.engines.quantized_graph import Quantization
from pthserve.errors import EngineFailed, RequestError, UnsupportedImage
from pthserve.files.golden import Golden
from pthserve.images.preprocess import Prepared, crop_sized, pending
from pthserve.images.spec import Spec
from pthserve.options import ModelOptions
from pthserve.planning.plan import Plan
from pthserve.tasks.base import Size, Task, TensorForm
from pthserve.tasks.classification import CLASSIFICATION

ImageInput = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""What a model can be called with: the path of an image file, the bytes of one, an image of Pillow's, or
pixels, uint8 (height, width, 3) in RGB or (height, width) in grey."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Model:
    """A loaded model. It is called with an image; a request to a service holds the one it was admitted for.

    ```python
    with pthserve.load("model.pth") as model:
        print(model("cat.jpg").label)
    ```

    Its answers are Classifications, or of the type of its task: MultiLabel, Binary, Regression, Embedding,
    Detections or Segmentation.
    Any thread may call it. As a context manager, it is closed at the end of the block.

    forward: the engine, which takes batches of preprocessed images: uint8 (n, height, width, channels) or
    float32 (n, channels, height, width), to float32 (n, outputs).
    labels: one a class, or one an output; see `Task.labels`. task: what the outputs mean.
    inferred: what was found out about it that nobody stated; see `Inferred.uncertain`.
    digest: SHA-256 of the weights file, 64 hexadecimal digits.
    int8: what of it is at int8, where that is its precision.
    source: what it was loaded from, where it was loaded; options: how.
    threads_per_cpu: of its engine, for each CPU that the process could use when its plan was made.
    """

    forward: Engine
    labels: tuple[str, ...]
    spec: Spec
    plan: Plan
    digest: str
    name: str
    version: str
    architecture: str
    parameters: int
    golden: tuple[Golden, ...] = field(default=())
    inferred: tuple[Inferred, ...] = ()
    task: Task = CLASSIFICATION
    int8: Quantization | None = None
    source: Path | None = None
    options: ModelOptions = field(default=ModelOptions(), repr=False)
    threads_per_cpu: float = field(default=1.0, repr=False)
    _turns: BoundedSemaphore = field(init=False, repr=False)
    _closed: Event = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_turns", BoundedSemaphore(self.forward.lanes))
        object.__setattr__(self, "_closed", Event())

    @property
    def num_classes(self) -> int:
        """How many classes the model tells apart."""
        return len(self.labels)

    @property
    def outputs(self) -> int:
        """How many numbers the engine gives for an image; see `Task.outputs`."""
        return self.task.outputs(self.labels)

    @property
    def tensor_forms(self) -> tuple[TensorForm, ...]:
        """The outputs that an Open Inference Protocol request may ask for."""
        return self.task.tensor_forms(len(self.labels))

    @property
    def does(self) -> str:
        """What it does, as a verb phrase: how many classes it tells apart, or which values it gives."""
        return self.task.describe(self.labels)

    def __call__(self, image: ImageInput) -> Any:
        """The answer for one image.

        ```python
        answer = model("cat.jpg")
        print(answer.label, answer.probabilities[answer.class_index])
        ```

        Args:
            image: the path of an image file, the bytes of one, an image of Pillow's, or pixels, uint8
                (height, width, 3) in RGB or (height, width) in grey.

        Raises:
            RequestError: it is not an image, it is broken, or it has more pixels than `max_pixels` allows.
            OSError: the file cannot be read.
            EngineFailed: the model's answer is not a number.
        """
        return self.batch([image])[0]

    def batch(self, images: Iterable[ImageInput]) -> list[Any]:
        """One answer an image, in their order.

        ```python
        for answer in model.batch(["cat.jpg", "dog.jpg"]):
            print(answer.label)
        ```

        Args:
            images: any number of them; see `__call__`. As many as the option `max_batch`, or the plan, says
                are in memory at once.

        Raises: what `__call__` raises; then there is no answer for any image.
        """
        rest, most = iter(images), self.options.max_batch or self.plan.max_batch
        answers: list[Any] = []
        while given := [self._preprocessed(image) for image in islice(rest, most)]:
            outputs: list[NDArray[np.float32]] = []
            # An engine takes images of one shape at once.
            for _, alike in groupby((pixels for pixels, _ in given), lambda pixels: pixels.shape):
                with self._turns:
                    if self._closed.is_set():
                        raise EngineFailed(f"the model {self.name} is closed; load it again")
                    outputs += list(self.forward(np.stack(list(alike))))
            answers += [self.answer(output, size) for output, (_, size) in zip(outputs, given, strict=True)]
        return answers

    def answer(self, output: NDArray[np.float32], size: Size = (1, 1)) -> Any:
        """The answer for one image of this size, out of its row of the engine's outputs; see `Task.answer`.

        Raises:
            EngineFailed: the row is not finite.
        """
        if not np.isfinite(output).all():
            raise EngineFailed("the model returned NaN or infinity; check its weights and the precision")
        return self.task.answer(output, self.labels, size)

    def threads_on(self, cpus: int) -> int:
        """How many threads its engine should have where the process may use so many CPUs.

        As many as it has, where it runs on another device or cannot be resized.
        """
        if self.plan.device != "cpu" or not isinstance(self.forward, Resizable):
            return self.forward.threads
        return max(1, round(self.threads_per_cpu * cpus))

    def resized(self, cpus: int) -> Self:
        """The same model on an engine of its own, with the threads that so many CPUs call for.

        Raises:
            EngineError: the engine cannot be made.
        """
        assert isinstance(self.forward, Resizable)
        threads = self.threads_on(cpus)
        reason = f"{self.plan.reason.partition(_RESIZED)[0]}{_RESIZED}{threads} threads"
        plan = replace(self.plan, threads=threads, reason=reason)
        return replace(self, forward=self.forward.with_threads(threads), plan=plan)

    def close(self) -> None:
        """Give its memory back. A closed model answers nothing any more; closing it again does nothing."""
        self._closed.set()
        self.forward.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _preprocessed(self, image: ImageInput) -> tuple[Prepared, Size]:
        """The image as the engine takes it, and its (width, height)."""
        most = self.options.max_pixels
        match image:
            case str() | os.PathLike():
                try:
                    return self._decoded(Path(image).read_bytes())
                except RequestError as error:
                    raise type(error)(f"{image}: {error}") from error
            case bytes():
                return self._decoded(image)
            case Image.Image():
                return crop_sized(image, self.spec, max_pixels=most)
            case np.ndarray():
                return crop_sized(_as_image(image), self.spec, max_pixels=most)
        raise TypeError(f"an image is a path, bytes, a Pillow image or an array, not {type(image).__name__}")

    def _decoded(self, data: bytes) -> tuple[Prepared, Size]:
        options = self.options
        image = pending(data, self.spec, decode=options.decode, max_pixels=options.max_pixels)
        return image.pixels(), image.upright


_RESIZED = "; resized to "


def _as_image(pixels: NDArray[Any]) -> Image.Image:
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not is_image or not pixels.size:
        raise UnsupportedImage(
            f"an array of {pixels.dtype} {pixels.shape} is not an image; pixels are uint8 (height, width, 3) "
            "in RGB, or (height, width) in grey"
        )
    return Image.fromarray(pixels)
