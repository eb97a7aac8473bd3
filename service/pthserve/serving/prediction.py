"""Prediction: what is answered for one image."""

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
"""What a client may send as one image: an encoded image file; its pixels, uint8 RGB (height, width, 3), still
to be preprocessed; or float32 (channels, height, width), preprocessed by the client."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The answer for one image, and how it came about.

    model: the one that gave it; answer: of the type of its task.
    decode, queue, infer: seconds spent in each stage; batch: images in the same forward pass.
    since: when `queue` began, on time.perf_counter()'s clock.
    """

    model: Model
    answer: Any
    decode: float
    queue: float
    infer: float
    batch: int
    since: float


def prediction_of(model: Model, image: Input, inference: Inference) -> Prediction:
    """What `model` found in `image`; raises MalformedRequest or EngineFailed where that is not a number."""
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
    """A span a stage, each from the first image's beginning to the last one's end."""
    queued = [found.since for found in predictions]
    begun = [found.since + found.queue for found in predictions]
    decoding = min(found.since - found.decode for found in predictions)
    answered = max(found.since + found.queue + found.infer for found in predictions)
    span.stage("decode", decoding, max(queued) - decoding, images=len(predictions))
    span.stage("queue", min(queued), max(begun) - min(queued))
    span.stage(
        "infer",
        min(begun),
        answered - min(begun),
        batch=max(found.batch for found in predictions),
        digest=predictions[0].model.digest,
    )
