"""Values: a plan as values of the Helm chart."""

from pathlib import Path
from typing import Any

import yaml

from pthserve.errors import PthserveError
from pthserve.sizing.plan import MIB, Demand, Metric, Plan


def values(plan: Plan, demand: Demand, metric: Metric) -> dict[str, Any]:
    """Return the values of the chart that follow from `plan`, for an autoscaler that follows `metric`."""
    size: dict[str, Any] = {"cpu": str(plan.curve.cores)}
    requests, limits = dict(size), dict(size)
    if plan.memory is not None:
        requests["memory"], limits["memory"] = (f"{bound // MIB}Mi" for bound in plan.memory)
    return {
        "replicas": plan.pods,
        "resources": {"requests": requests, "limits": limits},
        "autoscaling": {
            "enabled": True,
            "minReplicas": plan.least,
            "maxReplicas": plan.most,
            "metric": metric,
            "target": {metric: plan.targets[metric]},
        },
        "podDisruptionBudget": {"enabled": True, "maxUnavailable": max(1, plan.lost)},
        "settings": {"plannedRate": round(plan.boundary, 2), "plannedLatency": demand.p99},
    }


def text(plan: Plan, demand: Demand, metric: Metric) -> str:
    """Return those values as YAML, for `helm install --values`."""
    head = (
        f"# {plan.pods} pods for {demand.rate:g} requests per second with a 99th percentile of at most\n"
        f"# {1000 * demand.p99:g} ms, from `pthserve size`. The model is not part of it: see `weights`.\n"
    )
    return head + yaml.safe_dump(values(plan, demand, metric), sort_keys=False)


def write(path: Path, plan: Plan, demand: Demand, metric: Metric) -> None:
    """Write those values to a file.

    Raises:
        PthserveError: The file cannot be written.
    """
    try:
        path.write_text(text(plan, demand, metric))
    except OSError as error:
        raise PthserveError(f"{path}: the values cannot be written: {error.strerror}") from error
