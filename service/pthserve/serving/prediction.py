"""Prediction: the answer for one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pthserve.errors import MalformedRequest
from pthserve.loading.model import Model
from pthserve.serving.batcher import Inference
from pthserve.tracing import Span

Input = bytes | NDArray[np.uint8] | NDArray[np.float32]
"""The forms of one image in a request: an encoded image file; pixels, uint8 RGB (height, width, 3), before
preprocessing; or a tensor, float32 (channels, height, width), preprocessed by the client."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The answer for one image, with durations.

    Attributes:
        model: The model that gave the answer.
        answer: The answer, of the type that belongs to the model's task.
        decode: Seconds to decode and preprocess the image.
        queue: Seconds in the queue.
        infer: Seconds of the forward pass.
        batch: Number of images in the same forward pass.
        since: When the image was queued, on the clock of time.perf_counter().
    """

    model: Model
    answer: Any
    decode: float
    queue: float
    infer: float
    batch: int
    since: float


def prediction_of(model: Model, image: Input, inference: Inference) -> Prediction:
    """Return the prediction that `model` derives from `inference`.

    Raises:
        MalformedRequest: An output is NaN or infinity, and `image` is a tensor, so its values are the cause.
        EngineFailed: An output is NaN or infinity for another kind of image.
    """
    is_tensor = isinstance(image, np.ndarray) and image.dtype == np.float32
    if is_tensor and not np.isfinite(inference.logits).all():
        raise MalformedRequest("the tensor contains values that are too large or not a number")
    return Prediction(
        model,
        model.answer(inference.logits, inference.size),
        inference.decode,
        inference.queue,
        inference.infer,
        inference.batch,
        inference.since,
    )


def trace(span: Span, predictions: Sequence[Prediction]) -> None:
    """Add a span for each stage, from the start of the first image to the end of the last one."""
    queued = [one.since for one in predictions]
    begun = [one.since + one.queue for one in predictions]
    decoding = min(one.since - one.decode for one in predictions)
    answered = max(one.since + one.queue + one.infer for one in predictions)
    span.stage("decode", decoding, max(queued) - decoding, images=len(predictions))
    span.stage("queue", min(queued), max(begun) - min(queued))
    span.stage(
        "infer",
        min(begun),
        answered - min(begun),
        batch=max(one.batch for one in predictions),
        digest=predictions[0].model.digest,
    )
