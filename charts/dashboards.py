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
            "Answers a second, by route and status code. Probes and scrapes are left out.",
            "reqps",
            {"{{route}} {{code}}": _rate("pthserve_requests_total", "route, code", OWN)},
            stack=True,
        ),
        Panel(
            "Errors",
            "Share of the answers that were 5xx: the service's fault, or more load than it can take.",
            "percentunit",
            {"5xx": f"({ERRORS} or 0 * {ANSWERS}) / {ANSWERS}"},
        ),
        Panel(
            "Latency",
            "From the request line to the last byte of the answer, over all routes.",
            "s",
            _quantiles("pthserve_request_duration_seconds", where=OWN),
        ),
        Panel(
            "Latency by route",
            "The 95th percentile of each route.",
            "s",
            {"{{route}}": _quantile(0.95, "pthserve_request_duration_seconds", "le, route", OWN)},
        ),
        Panel(
            "Clients that left",
            "Requests a second whose client was gone before the answer.",
            "reqps",
            {"{{pod}}": _rate("pthserve_disconnects_total", "pod")},
        ),
        Panel(
            "Pods",
            "Pods that are scraped, and those of them that have a model.",
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
            "Decoded images that wait for the engine, by pod.",
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
            "Requests a second that were turned away at the door, by reason.",
            "reqps",
            {"{{reason}}": _rate("pthserve_rejected_total", "reason")},
            stack=True,
        ),
        Panel(
            "CPU",
            "CPU seconds a second that a pod's process takes.",
            "short",
            {"{{pod}}": _rate("process_cpu_seconds_total", "pod")},
        ),
        Panel(
            "Memory",
            "Resident memory of a pod's process, and how much of it images may take while they are decoded.",
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
            ("decode", "From the image's bytes to pixels, resized and cropped."),
            ("queue", "From decoded to the start of a forward pass."),
            ("infer", "The forward pass that the image was part of."),
        )
    ]
    + [
        Panel(
            "Forward pass by batch size",
            "How long one forward pass takes with so many images in it: the mean.",
            "s",
            {"{{batch_size}}": _mean("pthserve_forward_duration_seconds", "batch_size")},
        ),
        Panel(
            "Inference",
            "From a request's images to their answers, over HTTP and gRPC: the mean, by result.",
            "s",
            {"{{result}}": _mean("pthserve_inference_duration_seconds", "result")},
        ),
        Panel(
            "Since the last answer",
            "How long ago a pod last answered an image. A pod that stands out gets no requests.",
            "s",
            {"{{pod}}": f"time() - (pthserve_last_inference_timestamp_seconds{{{SERIES}}} > 0)"},
        ),
    ],
    "Autoscaling": [
        Panel(
            "Pods wanted",
            "What the autoscaler wants and what there is. From kube-state-metrics.",
            "short",
            {
                "desired": f"kube_horizontalpodautoscaler_status_desired_replicas{{{SCALER}}}",
                "current": f"kube_horizontalpodautoscaler_status_current_replicas{{{SCALER}}}",
                "most": f"kube_horizontalpodautoscaler_spec_max_replicas{{{SCALER}}}",
            },
        ),
        Panel(
            "Metrics and their targets",
            "What the autoscaler holds: its target from kube-state-metrics beside the pods' mean.",
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

MODEL = {
    "Model": [
        Panel(
            "Models",
            "Which model runs in which pod, on what. Two digests at once: a rollout, or a fault.",
            "short",
            {"": f'pthserve_model_info{{{SERIES},digest!=""}}'},
            kind="table",
            width=24,
        ),
        Panel(
            "Loads",
            "Attempts to load a model. failed: its file is at fault; golden: its golden images disagree.",
            "short",
            {"{{pod}} {{result}}": f"increase(pthserve_model_loads_total{{{SERIES}}}[$__rate_interval])"},
        ),
        Panel(
            "Changed files",
            "1 while the model's files differ from those that were loaded.",
            "short",
            {"{{pod}}": f"pthserve_model_files_changed{{{SERIES}}}"},
        ),
        Panel(
            "Dropped log lines",
            "Lines of the log that could not be written, a second.",
            "short",
            {"{{pod}}": _rate("pthserve_log_lines_dropped_total", "pod")},
        ),
        Panel(
            "Load time",
            "How long the served model took to load, tuning included.",
            "s",
            {"{{pod}}": f"pthserve_model_load_seconds{{{SERIES}}}"},
        ),
        Panel(
            "Shadow",
            "Live images a second that a new model on trial answered too, by whether both named one class.",
            "reqps",
            {"{{result}}": _rate("pthserve_shadow_images_total", "result")},
            stack=True,
        ),
    ],
    "Predictions": [
        Panel(
            "Classes",
            "Answers a second, by top class: the ten most frequent.",
            "reqps",
            {"{{label}}": f"topk(10, {LABELS})"},
            stack=True,
            width=12,
        ),
        Panel(
            "Share of the most frequent class",
            "Does one class take over? Then the input has changed, or the model is stuck.",
            "percentunit",
            {"share": f"max({LABELS}) / sum({LABELS})"},
            most=1,
            width=12,
        ),
        Panel(
            "Confidence",
            "Mean probability of the top class. Away from the day before, the input is not what it was.",
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
            "Distribution of confidence",
            "How many answers fell into which tenth of confidence.",
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
        "pthserve-service", "pthserve / Service", "Is it up, is it quick, and is there room left?", SERVICE
    ),
    "model": lambda: _dashboard(
        "pthserve-model",
        "pthserve / Model",
        "What is served, and is what it sees what it was made for?",
        MODEL,
    ),
}
