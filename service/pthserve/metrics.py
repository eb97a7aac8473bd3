"""Every Prometheus object of the service, and nothing else. The table is docs/metrics.md."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
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

REQUESTS = Counter(
    "pthserve_requests", "Requests answered, by route and status code.", ["route", "code"], registry=REGISTRY
)
REQUEST_DURATION = Histogram(
    "pthserve_request_duration_seconds",
    "Time from the request line to the last byte of the response.",
    ["route"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
STAGE_DURATION = Histogram(
    "pthserve_stage_duration_seconds",
    "Time of an image in one stage: decode, queue or infer; or answer, of what is computed afterwards.",
    ["stage"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
INFLIGHT = Gauge("pthserve_inflight_requests", "Images admitted and not yet answered.", registry=REGISTRY)
QUEUE_DEPTH = Gauge("pthserve_queue_depth", "Decoded images waiting for the engine.", registry=REGISTRY)
DECODE_MEMORY = Gauge(
    "pthserve_decode_memory_bytes",
    "Memory reserved for images that are being decoded; the limit is decode_memory.",
    registry=REGISTRY,
)
SATURATION = Gauge(
    "pthserve_saturation",
    "Utilisation over the last 10 seconds, 0 to 1, of the engine or the decoders, whichever is higher.",
    registry=REGISTRY,
)
CPUS = Gauge(
    "pthserve_cpus",
    "CPUs that the service uses: threads, or else its CPU limit as it is now.",
    registry=REGISTRY,
)
PLANNED_RATE = Gauge(
    "pthserve_planned_rate",
    "Requests per second up to which the pod is planned to keep its planned latency; 0 without a plan.",
    registry=REGISTRY,
)
PLANNED_LATENCY = Gauge(
    "pthserve_planned_latency_seconds",
    "Planned 99th percentile of latency; 0 without a plan.",
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
    "Duration of a forward pass, by batch size.",
    ["batch_size"],
    registry=REGISTRY,
)
INFERENCE_DURATION = Summary(
    "pthserve_inference_duration_seconds",
    "Time to answer the images of a request, over HTTP and gRPC, by result: success or failure.",
    ["result"],
    registry=REGISTRY,
)
LAST_INFERENCE = Gauge(
    "pthserve_last_inference_timestamp_seconds",
    "Time of the last answered request, in seconds since the epoch; 0 before the first.",
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
    f"Requests rejected, by reason: {', '.join(list(Rejection)[:-1])} or {list(Rejection)[-1]}.",
    ["reason"],
    registry=REGISTRY,
)
DISCONNECTS = Counter(
    "pthserve_disconnects", "Clients that disconnected before the response.", registry=REGISTRY
)
LOG_LINES_DROPPED = Counter(
    "pthserve_log_lines_dropped",
    "Log lines dropped because standard error could not be written, or not fast enough.",
    registry=REGISTRY,
)
MODEL_INFO = Info(
    "pthserve_model",
    "The current model: name, version, architecture, digest, engine and precision.",
    registry=REGISTRY,
)
MODEL_DIFFERENCE = Gauge(
    "pthserve_model_difference",
    "Difference of a probability from fp32 PyTorch on the compared crops: mean, p95 or largest.",
    ["statistic"],
    registry=REGISTRY,
)
MODEL_SAME_DECISIONS = Gauge(
    "pthserve_model_same_decisions_ratio",
    "Share of the compared crops with the decision of fp32 PyTorch: of all, or of those where it is clear.",
    ["crops"],
    registry=REGISTRY,
)
MODEL_LOAD_SECONDS = Gauge(
    "pthserve_model_load_seconds", "Time that the current model took to load.", registry=REGISTRY
)
MODEL_FILES_CHANGED = Gauge(
    "pthserve_model_files_changed",
    "1 if the model files have changed since the current model was loaded, else 0.",
    registry=REGISTRY,
)
MODEL_LOADS = Counter(
    "pthserve_model_loads",
    "Attempts to load a model, by result: ok, failed, or golden if its golden images failed.",
    ["result"],
    registry=REGISTRY,
)
SHADOW_IMAGES = Counter(
    "pthserve_shadow_images",
    "Live images also sent to a new model before it replaced the old one, by result: agreed or disagreed.",
    ["result"],
    registry=REGISTRY,
)
PREDICTIONS = Counter(
    "pthserve_predictions",
    "Predictions by top class, or by label that applies; of a detector, the objects by label; of a "
    "segmentation model, the images with pixels of a class. Labels after the first 100 count as `other`.",
    ["label"],
    registry=REGISTRY,
)
CONFIDENCE = Histogram(
    "pthserve_prediction_confidence",
    "Probability of the top class or label; of a detector, the highest score in an image, 0 without an "
    "object; of a segmentation model, the mean over the pixels.",
    buckets=tuple(tenth / 10 for tenth in range(1, 11)),
    registry=REGISTRY,
)
AREAS = Counter(
    "pthserve_class_area_images",
    "Area of each class that a segmentation model finds: the sum of its shares of the images. Labels as in "
    "pthserve_predictions_total.",
    ["label"],
    registry=REGISTRY,
)
VALUES = Summary(
    "pthserve_prediction_value",
    "Values that a regression predicts, by output; outputs after the first 100 are not counted.",
    ["output"],
    registry=REGISTRY,
)
ROLLOUT_COMPARISONS = Counter(
    "pthserve_rollout_comparisons",
    "Live images whose answer was compared with that of another release, by the digests of this model and of "
    "the other, by result (agreed or disagreed), and by weights: same if both digests are equal, or other.",
    ["digest", "other", "weights", "result"],
    registry=REGISTRY,
)
ROLLOUT_FAILURES = Counter(
    "pthserve_rollout_comparison_failures",
    "Live images that could not be compared with another release, by reason: timeout, connection, status, "
    "answer, itself or tensor.",
    ["reason"],
    registry=REGISTRY,
)
ROLLOUT_AGREEMENT = Gauge(
    "pthserve_rollout_agreement",
    "Share of the compared live images on which this model and that of another release agree: the estimate, "
    "and the lower and upper bound of its 95 % confidence interval.",
    ["bound", "digest", "other"],
    registry=REGISTRY,
)
ROLLOUT_DIFFERENCE = Summary(
    "pthserve_rollout_difference",
    "Difference from the answer of another release: the largest one of a probability, or what the task "
    "compares in its place.",
    ["digest", "other"],
    registry=REGISTRY,
)
FEEDBACK = Counter(
    "pthserve_feedback",
    "Answers whose true class a client has sent, by the digest of the model and by result: correct or "
    "incorrect.",
    ["digest", "result"],
    registry=REGISTRY,
)
FEEDBACK_ACCURACY = Gauge(
    "pthserve_feedback_accuracy",
    "Share of correct answers among those whose true class a client has sent: the estimate, and the lower "
    "and upper bound of its 95 % confidence interval.",
    ["bound", "digest"],
    registry=REGISTRY,
)
BUILD_INFO = Info("pthserve_build", "Version of the service and of Python.", registry=REGISTRY)


def count_rejection(reason: Rejection) -> None:
    """Count a request that is turned away."""
    _REJECTED.labels(reason).inc()


MAX_SERIES = 100
"""Time series for labels, and for outputs."""
_labels_seen: set[str] = set()
_outputs_seen: set[str] = set()


def show_agreement(
    differences: Mapping[str, float], same: float | None, clear: int | None, kept: int | None
) -> None:
    """Show how the current model compares with fp32 PyTorch; see `Evidence`.

    Args:
        differences: By statistic; empty if it was not compared.
        same: Share of crops with the same decision. clear, kept: see `Evidence`.
    """
    MODEL_DIFFERENCE.clear()
    MODEL_SAME_DECISIONS.clear()
    for statistic, value in differences.items():
        MODEL_DIFFERENCE.labels(statistic).set(value)
    if same is not None:
        MODEL_SAME_DECISIONS.labels("all").set(same)
    if clear and kept is not None:
        MODEL_SAME_DECISIONS.labels("clear").set(kept / clear)


def count_prediction(label: str, probability: float) -> None:
    """Count an answer. Every label is a time series, so those beyond the first MAX_SERIES share one."""
    _count_label(label)
    CONFIDENCE.observe(probability)


def count_labels(labels: Iterable[str], probability: float) -> None:
    """Count an answer of several labels, or none; probability: of the most probable."""
    for label in labels:
        _count_label(label)
    CONFIDENCE.observe(probability)


def count_area(label: str, share: float) -> None:
    """Count the share of an image that a class has, 0 to 1. Labels share series as for `count_labels`."""
    AREAS.labels(_series(label)).inc(share)


def count_value(output: str, value: float) -> None:
    """Count a value. Every output is a time series, so those beyond the first MAX_SERIES are left out."""
    if output in _outputs_seen or len(_outputs_seen) < MAX_SERIES:
        _outputs_seen.add(output)
        VALUES.labels(output).observe(value)


def _count_label(label: str) -> None:
    PREDICTIONS.labels(_series(label)).inc()


def _series(label: str) -> str:
    """The label itself, or `other` for one beyond the first MAX_SERIES."""
    if label not in _labels_seen:
        if len(_labels_seen) >= MAX_SERIES:
            label = "other"
        _labels_seen.add(label)
    return label


BOUNDS = ("lower", "estimate", "upper")
"""The series of a share with its confidence interval, by the label `bound`."""


def show_interval(gauge: Gauge, interval: tuple[float, float, float], *labels: str) -> None:
    """Set a share with its bounds, in the order of BOUNDS; labels: of `gauge`, behind `bound`."""
    for bound, value in zip(BOUNDS, interval, strict=True):
        gauge.labels(bound, *labels).set(value)


def remove_interval(gauge: Gauge, *labels: str) -> None:
    """Remove the series that `show_interval` has set for these labels."""
    for bound in BOUNDS:
        with suppress(KeyError):
            gauge.remove(bound, *labels)


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
