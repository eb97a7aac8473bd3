"""The Grafana dashboards, as data: each panel says what it shows, in which unit, from which queries.

SERIES selects those of the chosen namespace, release and pods; OWN leaves probes and scrapes out of them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SERIES = 'namespace="$namespace",release="$release",pod=~"$pod"'
OWN = SERIES + ',route!~"/(livez|readyz|healthz|metrics|v2/health/.*)"'
# What other exporters measure carries no release.
PODS = 'namespace="$namespace",pod=~"$pod"'
SCALER = 'namespace="$namespace",horizontalpodautoscaler=~"(keda-hpa-)?$release.*"'

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One picture. queries: legend to PromQL. unit: Grafana's name of it."""

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    most: float | None = None
    stack: bool = False


def _quantile(share: float, metric: str, by: str, where: str) -> str:
    return f"histogram_quantile({share}, {_rate(metric + '_bucket', by, where)})"


def _quantiles(metric: str, where: str) -> dict[str, str]:
    return {f"p{round(share * 100)}": _quantile(share, metric, "le", where) for share in (0.5, 0.95, 0.99)}


def _rate(metric: str, by: str, where: str = SERIES) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def _mean(metric: str, by: str = "release") -> str:
    return f"{_rate(metric + '_sum', by)} / {_rate(metric + '_count', by)}"


ANSWERS = _rate("pthserve_requests_total", "release", OWN)
ERRORS = _rate("pthserve_requests_total", "release", OWN + ',code=~"5.."')

SERVICE = {
    "Service": [
        Panel(
            "Requests",
            "Responses per second, by route and status code, without probes and scrapes.",
            "reqps",
            {"{{route}} {{code}}": _rate("pthserve_requests_total", "route, code", OWN)},
            stack=True,
        ),
        Panel(
            "Errors",
            "Share of responses with a 5xx status: an error of the service, or more load than it can handle.",
            "percentunit",
            {"5xx": f"({ERRORS} or 0 * {ANSWERS}) / {ANSWERS}"},
        ),
        Panel(
            "Latency",
            "Time from the request line to the last byte of the response, over all routes; and the planned "
            "99th percentile, where there is a plan.",
            "s",
            _quantiles("pthserve_request_duration_seconds", where=OWN)
            | {"planned p99": f"max(pthserve_planned_latency_seconds{{{SERIES}}} > 0)"},
        ),
        Panel(
            "Latency by route",
            "The 95th percentile of each route.",
            "s",
            {"{{route}}": _quantile(0.95, "pthserve_request_duration_seconds", "le, route", OWN)},
        ),
        Panel(
            "Load and plan",
            "Requests with images per second, and how many the pods are planned for (docs/sizing.md). Above "
            "that, the 99th percentile of latency exceeds the planned one.",
            "reqps",
            {
                "actual": _rate("pthserve_inference_duration_seconds_count", "release"),
                "planned": f"sum(pthserve_planned_rate{{{SERIES}}} > 0)",
            },
        ),
        Panel(
            "Disconnected clients",
            "Requests per second whose client disconnected before the response.",
            "reqps",
            {"{{pod}}": _rate("pthserve_disconnects_total", "pod")},
        ),
        Panel(
            "Pods",
            "Pods that are scraped, and how many of them have a model.",
            "short",
            {
                "scraped": f"count(pthserve_build_info{{{SERIES}}})",
                "with a model": f'count(pthserve_model_info{{{SERIES},digest!=""}})',
            },
        ),
    ],
    "Saturation": [
        Panel(
            "Saturation",
            "Share of time in which a pod's engine is busy. At 1 the queue grows.",
            "percentunit",
            {"{{pod}}": f"pthserve_saturation{{{SERIES}}}"},
            most=1,
        ),
        Panel(
            "In flight",
            "Images admitted and not yet answered, by pod.",
            "short",
            {"{{pod}}": f"pthserve_inflight_requests{{{SERIES}}}"},
        ),
        Panel(
            "Queue",
            "Decoded images waiting for the engine, by pod.",
            "short",
            {"{{pod}}": f"pthserve_queue_depth{{{SERIES}}}"},
        ),
        Panel(
            "Batch size",
            "Images in one forward pass: the mean, by pod. It grows by itself under load.",
            "short",
            {"{{pod}}": _mean("pthserve_batch_size", "pod")},
        ),
        Panel(
            "Rejections",
            "Rejected requests per second, by reason.",
            "reqps",
            {"{{reason}}": _rate("pthserve_rejected_total", "reason")},
            stack=True,
        ),
        Panel(
            "CPU",
            "CPU seconds per second used by the process of a pod, and the number of CPUs that it may use.",
            "short",
            {
                "{{pod}}": _rate("process_cpu_seconds_total", "pod"),
                "{{pod}} may use": f"pthserve_cpus{{{SERIES}}}",
            },
        ),
        Panel(
            "Memory",
            "Resident memory of the process of a pod, and the part reserved for images being decoded.",
            "bytes",
            {
                "{{pod}}": f"process_resident_memory_bytes{{{SERIES}}}",
                "{{pod}} decoding": f"pthserve_decode_memory_bytes{{{SERIES}}}",
            },
        ),
    ],
    "Stages": [
        Panel(
            f"{stage.capitalize()}",
            description,
            "s",
            _quantiles("pthserve_stage_duration_seconds", where=f'{SERIES},stage="{stage}"'),
        )
        for stage, description in (
            ("decode", "From the bytes of an image to resized and cropped pixels."),
            ("queue", "From the decoded image to the start of its forward pass."),
            ("infer", "The forward pass that contained the image."),
        )
    ]
    + [
        Panel(
            "Forward pass by batch size",
            "Mean duration of a forward pass, by batch size.",
            "s",
            {"{{batch_size}}": _mean("pthserve_forward_duration_seconds", "batch_size")},
        ),
        Panel(
            "Inference",
            "Mean time to answer the images of a request, over HTTP and gRPC, by result.",
            "s",
            {"{{result}}": _mean("pthserve_inference_duration_seconds", "result")},
        ),
        Panel(
            "Time since the last answer",
            "Time since a pod last answered a request. A pod with a much higher value gets no requests.",
            "s",
            {"{{pod}}": f"time() - (pthserve_last_inference_timestamp_seconds{{{SERIES}}} > 0)"},
        ),
    ],
    "Autoscaling": [
        Panel(
            "Desired pods",
            "Desired and current number of pods of the autoscaler. From kube-state-metrics.",
            "short",
            {
                "desired": f"kube_horizontalpodautoscaler_status_desired_replicas{{{SCALER}}}",
                "current": f"kube_horizontalpodautoscaler_status_current_replicas{{{SCALER}}}",
                "most": f"kube_horizontalpodautoscaler_spec_max_replicas{{{SCALER}}}",
            },
        ),
        Panel(
            "Metrics and their targets",
            "Target values of the autoscaler, from kube-state-metrics, and the current mean over the pods.",
            "short",
            {
                "target {{metric_name}}": f"kube_horizontalpodautoscaler_spec_target_metric{{{SCALER}}}",
                "saturation": f"avg(avg_over_time(pthserve_saturation{{{SERIES}}}[30s]))",
                "in flight": f"avg(avg_over_time(pthserve_inflight_requests{{{SERIES}}}[30s]))",
            },
        ),
    ],
    "GPU": [
        Panel(
            "Utilisation",
            "Share of time in which the pod's GPU was busy. From the DCGM exporter.",
            "percent",
            {"{{pod}} {{gpu}}": f"DCGM_FI_DEV_GPU_UTIL{{{PODS}}}"},
            most=100,
        ),
        Panel(
            "Memory",
            "GPU memory in use. From the DCGM exporter.",
            "decmbytes",
            {"{{pod}} {{gpu}}": f"DCGM_FI_DEV_FB_USED{{{PODS}}}"},
        ),
    ],
}

LABELS = _rate("pthserve_predictions_total", "label")
AREAS = _rate("pthserve_class_area_images_total", "label")
IMAGES = f"sum(rate(pthserve_prediction_confidence_count{{{SERIES}}}[$__rate_interval]))"
"""Images per second that were answered with labels."""


def _share(part: str, whole: str) -> dict[str, str]:
    """The share of two counts, and the bounds of its Wilson score interval at 95 %."""
    half = f"1.96 * sqrt({part} * (1 - {part} / {whole}) + 0.9604)"
    bounds = {name: f"({part} + 1.9207 {sign} {half}) / ({whole} + 3.8415)" for name, sign in BOUNDS.items()}
    return {"estimate": f"{part} / {whole}", **bounds}


def _counts(metric: str, by: str, result: str) -> tuple[str, str]:
    """How many have this result, 0 included, and how many there are."""
    whole = f"sum by ({by}) ({metric}{{{SERIES}}})"
    return f'(sum by ({by}) ({metric}{{{SERIES},result="{result}"}}) or 0 * {whole})', whole


BOUNDS = {"at least": "-", "at most": "+"}
AGREED, COMPARED = _counts("pthserve_rollout_comparisons_total", "digest, other", "agreed")
CORRECT, REPORTED = _counts("pthserve_feedback_total", "digest", "correct")

MODEL = {
    "Model": [
        Panel(
            "Models",
            "The model, engine and precision of each pod. Two digests at once mean a rollout or an error.",
            "short",
            {"": f'pthserve_model_info{{{SERIES},digest!=""}}'},
            kind="table",
            width=24,
        ),
        Panel(
            "Loads",
            "Attempts to load a model. failed: the model cannot be loaded; golden: a golden image failed.",
            "short",
            {"{{pod}} {{result}}": f"increase(pthserve_model_loads_total{{{SERIES}}}[$__rate_interval])"},
        ),
        Panel(
            "Changed files",
            "1 while the model files differ from those that were loaded.",
            "short",
            {"{{pod}}": f"pthserve_model_files_changed{{{SERIES}}}"},
        ),
        Panel(
            "Dropped log lines",
            "Log lines per second that could not be written.",
            "short",
            {"{{pod}}": _rate("pthserve_log_lines_dropped_total", "pod")},
        ),
        Panel(
            "Load time",
            "Time that the current model took to load, including tuning.",
            "s",
            {"{{pod}}": f"pthserve_model_load_seconds{{{SERIES}}}"},
        ),
        Panel(
            "Shadow",
            "Live images per second that were also sent to a new model, by whether both models gave the "
            "same answer.",
            "reqps",
            {"{{result}}": _rate("pthserve_shadow_images_total", "result")},
            stack=True,
        ),
        Panel(
            "Difference from fp32",
            "Difference of a probability or score from fp32 PyTorch on the compared crops of each pod's "
            "model: mean, p95 and largest. Without a comparison the panel is empty.",
            "none",
            {"{{pod}} {{statistic}}": f"pthserve_model_difference{{{SERIES}}}"},
            width=12,
        ),
        Panel(
            "Same decisions as fp32",
            "Share of the compared crops with the decision of fp32 PyTorch: of all, and of those where the "
            "decision is clear. Below 1 the model decides otherwise for some images.",
            "percentunit",
            {"{{pod}} {{crops}}": f"pthserve_model_same_decisions_ratio{{{SERIES}}}"},
            width=12,
            most=1,
        ),
    ],
    "Rollout": [
        Panel(
            "Agreement with another release",
            "Share of the compared live images on which both releases agree, over all pods, for each pair of "
            "models: the estimate, and the bounds of its 95 % confidence interval.",
            "percentunit",
            {f"{{{{digest}}}} {name}": query for name, query in _share(AGREED, COMPARED).items()},
            most=1,
        ),
        Panel(
            "Comparisons",
            "Live images per second that were compared with another release, by result, and those that could "
            "not be compared, by reason.",
            "reqps",
            {
                "{{result}}": _rate("pthserve_rollout_comparisons_total", "result"),
                "failed: {{reason}}": _rate("pthserve_rollout_comparison_failures_total", "reason"),
            },
            stack=True,
        ),
        Panel(
            "Difference from another release",
            "Mean difference from the other release's answer: the largest one of a probability, or what the "
            "task compares in its place.",
            "none",
            {"{{digest}}": _mean("pthserve_rollout_difference", "digest")},
        ),
        Panel(
            "Agreement by pod",
            "Lower bound of the agreement with another release, of each pod's own comparisons.",
            "percentunit",
            {"{{pod}}": f'pthserve_rollout_agreement{{{SERIES},bound="lower"}}'},
            most=1,
        ),
        Panel(
            "Live accuracy",
            "Share of correct answers by the true classes that clients reported, over all pods, for each "
            "model: the estimate, and the bounds of its 95 % confidence interval.",
            "percentunit",
            {f"{{{{digest}}}} {name}": query for name, query in _share(CORRECT, REPORTED).items()},
            most=1,
        ),
        Panel(
            "Reports",
            "True classes that clients reported per second, by whether the answer was correct, and the lower "
            "bound of each pod's own accuracy.",
            "short",
            {
                "{{result}}": _rate("pthserve_feedback_total", "result"),
                "{{pod}} accuracy": f'pthserve_feedback_accuracy{{{SERIES},bound="lower"}}',
            },
        ),
    ],
    "Predictions": [
        Panel(
            "Labels",
            "The ten most frequent labels, per second: top classes of a classifier, labels that apply, "
            "objects of a detector, or images with pixels of a class of a segmentation model.",
            "cps",
            {"{{label}}": f"topk(10, {LABELS})"},
            stack=True,
            width=12,
        ),
        Panel(
            "Share of the most frequent label",
            "Of all labels in the answers. A high share of one label can mean that the input has changed or "
            "that the model is broken.",
            "percentunit",
            {"share": f"max({LABELS}) / sum({LABELS})"},
            most=1,
            width=12,
        ),
        Panel(
            "Labels per image",
            "Mean number: 1 of a classifier, the labels that apply, objects of a detector, or classes with "
            "pixels of a segmentation model.",
            "short",
            {"labels": f"sum({LABELS}) / scalar({IMAGES})"},
            width=12,
        ),
        Panel(
            "Area of a class",
            "Mean share of an image that a class of a segmentation model has, for the ten largest. The panel "
            "is empty for other models.",
            "percentunit",
            {"{{label}}": f"topk(10, {AREAS} / scalar({IMAGES}))"},
            most=1,
            stack=True,
            width=12,
        ),
        Panel(
            "Confidence",
            "Mean probability of the top class; of a detector, of the highest score in an image, 0 without "
            "an object. A difference from the day before can mean that the input has changed.",
            "percentunit",
            {
                "now": _mean("pthserve_prediction_confidence"),
                "a day before": _mean("pthserve_prediction_confidence").replace(
                    "[$__rate_interval]", "[$__rate_interval] offset 1d"
                ),
            },
            most=1,
            width=12,
        ),
        Panel(
            "Predicted values",
            "Mean of each value that a regression predicts.",
            "short",
            {"{{output}}": _mean("pthserve_prediction_value", "output")},
            width=12,
        ),
        Panel(
            "Distribution of confidence",
            "Number of images by confidence, in steps of 0.1.",
            "short",
            {"{{le}}": _rate("pthserve_prediction_confidence_bucket", "le").replace("rate(", "increase(")},
            kind="heatmap",
            width=12,
        ),
    ],
}


def _target(panel: Panel, index: int, legend: str, query: str) -> dict[str, Any]:
    target: dict[str, Any] = {
        "datasource": DATASOURCE,
        "expr": query,
        "legendFormat": legend,
        "refId": chr(ord("A") + index),
    }
    if panel.kind == "table":
        target |= {"format": "table", "instant": True}
    if panel.kind == "heatmap":
        target |= {"format": "heatmap"}
    return target


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    found: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"h": 8, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [_target(panel, index, *query) for index, query in enumerate(panel.queries.items())],
    }
    if panel.kind == "timeseries":
        custom: dict[str, Any] = {"fillOpacity": 10, "showPoints": "never"}
        if panel.stack:
            custom["stacking"] = {"mode": "normal"}
        defaults["custom"] = custom
        found["options"] = {
            "tooltip": {"mode": "multi", "sort": "desc"},
            "legend": {"displayMode": "list", "placement": "bottom"},
        }
    elif panel.kind == "heatmap":
        found["options"] = {"calculate": False, "yAxis": {"unit": "percentunit"}}
    elif panel.kind == "table":
        hidden = (
            "Time",
            "Value",
            "__name__",
            "container",
            "endpoint",
            "instance",
            "job",
            "namespace",
            "release",
            "service",
        )
        found["transformations"] = [
            {"id": "organize", "options": {"excludeByName": dict.fromkeys(hidden, True)}}
        ]
    return found


def _variable(name: str, label: str, query: str, many: bool = False) -> dict[str, Any]:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
        **({"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}} if many else {}),
    }


def _dashboard(uid: str, title: str, description: str, rows: dict[str, list[Panel]]) -> str:
    panels: list[dict[str, Any]] = []
    x = y = 0
    for row, shown in rows.items():
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "panels": [],
             "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}}
        )  # fmt: skip
        x, y = 0, y + 1
        for panel in shown:
            if x + panel.width > 24:
                x, y = 0, y + 8
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x += panel.width
        y += 8
    document = {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["pthserve"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {
                "type": "dashboards",
                "title": "pthserve",
                "tags": ["pthserve"],
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {
            "list": [
                {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"},
                _variable("namespace", "Namespace", "label_values(pthserve_build_info, namespace)"),
                _variable(
                    "release", "Release", 'label_values(pthserve_build_info{namespace="$namespace"}, release)'
                ),
                _variable(
                    "pod",
                    "Pod",
                    'label_values(pthserve_build_info{namespace="$namespace",release="$release"}, pod)',
                    many=True,
                ),
            ]
        },
        "panels": panels,
    }
    return json.dumps(document, indent=2) + "\n"


DASHBOARDS: dict[str, Callable[[], str]] = {
    "service": lambda: _dashboard(
        "pthserve-service", "pthserve / Service", "Availability, latency and capacity.", SERVICE
    ),
    "model": lambda: _dashboard(
        "pthserve-model",
        "pthserve / Model",
        "The current model, and whether its input has changed.",
        MODEL,
    ),
}
