"""Statistics: the statistics extension's fields, computed from the Prometheus metrics."""

from collections.abc import Iterator

from prometheus_client import Gauge, Histogram, Summary
from prometheus_client.samples import Sample

from pthserve.metrics import (
    CONFIDENCE,
    FORWARD_DURATION,
    INFERENCE_DURATION,
    LAST_INFERENCE,
    STAGE_DURATION,
)

Duration = dict[str, int]
"""`count` durations, and their sum in nanoseconds, `ns`."""

_NONE: Duration = {"count": 0, "ns": 0}


def statistics() -> dict[str, object]:
    """Return the statistics since the process started, warm-up included, without the model's name.

    Durations of queue and compute_* are per image, those of batch_stats per forward pass. Reading the logits
    is part of the forward pass, so compute_output is 0; so are the caches, which do not exist.
    """
    stages = _durations(STAGE_DURATION, "stage")
    results = _durations(INFERENCE_DURATION, "result")
    passes = _durations(FORWARD_DURATION, "batch_size")
    (last,) = (sample.value for sample in _samples(LAST_INFERENCE))
    (answered,) = (sample.value for sample in _samples(CONFIDENCE) if sample.name.endswith("_count"))
    return {
        "last_inference": round(last * 1e3),
        "inference_count": int(answered),
        "execution_count": sum(duration["count"] for duration in passes.values()),
        "inference_stats": {
            "success": results.get("success", _NONE),
            "fail": results.get("failure", _NONE),
            "queue": stages.get("queue", _NONE),
            "compute_input": stages.get("decode", _NONE),
            "compute_infer": stages.get("infer", _NONE),
            "compute_output": _NONE,
            "cache_hit": _NONE,
            "cache_miss": _NONE,
        },
        "batch_stats": [
            {
                "batch_size": int(size),
                "compute_input": _NONE,
                "compute_infer": duration,
                "compute_output": _NONE,
            }
            for size, duration in sorted(passes.items(), key=lambda item: int(item[0]))
        ],
    }


def _durations(metric: Summary | Histogram, label: str) -> dict[str, Duration]:
    """Return count and sum of `metric` for each value of its `label`."""
    found: dict[str, Duration] = {}
    for sample in _samples(metric):
        duration = found.setdefault(sample.labels[label], dict(_NONE))
        if sample.name.endswith("_count"):
            duration["count"] = int(sample.value)
        elif sample.name.endswith("_sum"):
            duration["ns"] = round(sample.value * 1e9)
    return found


def _samples(metric: Gauge | Histogram | Summary) -> Iterator[Sample]:
    return (sample for family in metric.collect() for sample in family.samples)
