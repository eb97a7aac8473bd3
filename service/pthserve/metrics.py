"""Every Prometheus object of the service, and nothing else. The table is docs/metrics.md."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    Summary,
    disable_created_metrics,
)

# A time series beside each counter, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

# Upper bounds in seconds: from a packed ResNet-18's forward pass to the default deadline.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

REQUESTS = Counter("pthserve_requests", "Requests answered.", ["route", "code"], registry=REGISTRY)
REQUEST_DURATION = Histogram(
    "pthserve_request_duration_seconds",
    "From the request line to the last byte of the answer.",
    ["route"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
STAGE_DURATION = Histogram(
    "pthserve_stage_duration_seconds",
    "Time that an image spent in one stage: decode, queue or infer.",
    ["stage"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
INFLIGHT = Gauge("pthserve_inflight_requests", "Images admitted and not yet answered.", registry=REGISTRY)
QUEUE_DEPTH = Gauge("pthserve_queue_depth", "Decoded images that wait for the engine.", registry=REGISTRY)
DECODE_MEMORY = Gauge(
    "pthserve_decode_memory_bytes",
    "Memory reserved for images that are being decoded; decode_memory is the most.",
    registry=REGISTRY,
)
SATURATION = Gauge(
    "pthserve_saturation",
    "How busy the engine was in the last 10 seconds, or the decoders where these were busier, 0 to 1.",
    registry=REGISTRY,
)
BATCH_SIZE = Histogram(
    "pthserve_batch_size",
    "Images in one forward pass.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
    registry=REGISTRY,
)
FORWARD_DURATION = Summary(
    "pthserve_forward_duration_seconds",
    "One forward pass, by the number of images in it.",
    ["batch_size"],
    registry=REGISTRY,
)
INFERENCE_DURATION = Summary(
    "pthserve_inference_duration_seconds",
    "From a request's images to their answers, over HTTP and gRPC, by result: success or failure.",
    ["result"],
    registry=REGISTRY,
)
LAST_INFERENCE = Gauge(
    "pthserve_last_inference_timestamp_seconds",
    "When a request's images were last answered, in seconds since the epoch; 0 before the first.",
    registry=REGISTRY,
)


class Rejection(StrEnum):
    """Why a request was turned away although nothing is wrong with it."""

    PERMITS = "permits"
    """As many images as `max_inflight` allows are being answered."""
    WAIT = "wait"
    """The images ahead take longer than the request's deadline allows."""
    MEMORY = "memory"
    """The bodies of other requests take all the memory for bodies."""
    EXPLAIN = "explain"
    """As many heat maps as possible at the same time are being made."""
    NOT_READY = "not_ready"
    """No model is loaded yet."""
    DRAINING = "draining"
    """The service is shutting down."""


_REJECTED = Counter(
    "pthserve_rejected",
    f"Requests turned away, by reason: {', '.join(list(Rejection)[:-1])} or {list(Rejection)[-1]}.",
    ["reason"],
    registry=REGISTRY,
)
DISCONNECTS = Counter("pthserve_disconnects", "Clients that left before their answer.", registry=REGISTRY)
LOG_LINES_DROPPED = Counter(
    "pthserve_log_lines_dropped",
    "Lines of the log that were not written, as standard error was not read in time or could not be written.",
    registry=REGISTRY,
)
MODEL_INFO = Info(
    "pthserve_model",
    "The model that is served: name, version, architecture, digest, engine and precision.",
    registry=REGISTRY,
)
MODEL_LOAD_SECONDS = Gauge(
    "pthserve_model_load_seconds", "How long the served model took to load.", registry=REGISTRY
)
MODEL_FILES_CHANGED = Gauge(
    "pthserve_model_files_changed",
    "1 when the model's files have changed since the served model was loaded from them, else 0.",
    registry=REGISTRY,
)
MODEL_LOADS = Counter(
    "pthserve_model_loads",
    "Attempts to load a model, by result: ok, failed, or golden when its golden images disagree.",
    ["result"],
    registry=REGISTRY,
)
SHADOW_IMAGES = Counter(
    "pthserve_shadow_images",
    "Live images that a new model answered too before it was swapped in, by result: agreed or disagreed.",
    ["result"],
    registry=REGISTRY,
)
PREDICTIONS = Counter(
    "pthserve_predictions",
    "Answers by top class; beyond the first 100 labels seen: `other`.",
    ["label"],
    registry=REGISTRY,
)
CONFIDENCE = Histogram(
    "pthserve_prediction_confidence",
    "Probability of the top class.",
    buckets=tuple(tenth / 10 for tenth in range(1, 11)),
    registry=REGISTRY,
)
BUILD_INFO = Info("pthserve_build", "Version of the service and of what it runs on.", registry=REGISTRY)


def count_rejection(reason: Rejection) -> None:
    """Count a request that is turned away."""
    _REJECTED.labels(reason).inc()


_labels_seen: set[str] = set()


def count_prediction(label: str, probability: float) -> None:
    """Count an answer. Every label is a time series, so those beyond the first 100 share one."""
    if label not in _labels_seen:
        if len(_labels_seen) >= 100:
            label = "other"
        _labels_seen.add(label)
    PREDICTIONS.labels(label).inc()
    CONFIDENCE.observe(probability)


@contextmanager
def timed_inference() -> Iterator[None]:
    """Time the block that answers a request's images; what it raises, cancellation too, is a failure."""
    began = time.perf_counter()
    result = "failure"
    try:
        yield
        result = "success"
        LAST_INFERENCE.set_to_current_time()
    finally:
        INFERENCE_DURATION.labels(result).observe(time.perf_counter() - began)
