"""Writes what follows from other files: python charts/generate.py

charts/pthserve/values.schema.json   from values.yaml, the constraints below and the service's settings
charts/pthserve/README.md            from values.yaml's comments
charts/pthserve/dashboards/*.json    from dashboards.py
k8s/manifests/pthserve.yaml          from the chart with its default values (needs helm on the PATH)
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "pthserve"
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "service")]

import dashboards  # noqa: E402

from pthserve.settings import Settings  # noqa: E402

TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
OBJECT = {"type": "object"}
OBJECTS = {"type": "array", "items": OBJECT}
STRINGS = {"type": "array", "items": {"type": "string"}}
QUANTITIES = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"requests": QUANTITIES, "limits": QUANTITIES, "claims": OBJECTS},
}
PROBE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        name: {"type": "integer", "minimum": 0}
        for name in (
            "initialDelaySeconds",
            "periodSeconds",
            "timeoutSeconds",
            "failureThreshold",
            "successThreshold",
            "terminationGracePeriodSeconds",
        )
    },
}
PULL = {"enum": ["IfNotPresent", "Always", "Never"]}
MODES = {
    "type": "array",
    "minItems": 1,
    "items": {"enum": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]},
}
COUNT = {"type": "integer", "minimum": 1}
SHARE = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
# What a default value alone does not tell. A key is a path in values.yaml, or the end of one.
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "replicas": {"type": "integer", "minimum": 0},
    "image.repository": {"minLength": 1},
    "image.variant": {"enum": ["full", "cuda", "slim"]},
    "image.digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "pullPolicy": PULL,
    "pullSecrets": OBJECTS,
    "weights.source": {
        "anyOf": [
            {"enum": ["demo", "pvc", "configMap", "download", "image"]},
            {"pattern": "^(https?|s3|gs|az|hf|oci)://"},
        ]
    },
    "weights.file": {"pattern": "^([^/].*)?$"},
    "weights.sha256": {"pattern": "^([0-9a-f]{64})?$"},
    "accessModes": MODES,
    "resources": RESOURCES,
    "resizePolicy": {
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["resourceName", "restartPolicy"],
            "properties": {
                "resourceName": {"enum": ["cpu", "memory"]},
                "restartPolicy": {"enum": ["NotRequired", "RestartContainer"]},
            },
        },
    },
    "gpu.count": COUNT,
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "service.port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "ingress.hosts": STRINGS,
    "hostnames": STRINGS,
    "filters": OBJECTS,
    "extraBackendRefs": OBJECTS,
    "weight": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
    "timeouts": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"request": {"type": "string"}, "backendRequest": {"type": "string"}},
    },
    "rollout.steps": {
        "type": "array",
        "minItems": 1,
        "items": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "rollout.interval": COUNT,
    "rollout.measurements": COUNT,
    "rollout.undecided": {"type": "integer", "minimum": 0},
    "rollout.minRequests": COUNT,
    "rollout.prometheus": {"pattern": "^https?://."},
    "gates.agreement": SHARE,
    "gates.agreementSameWeights": SHARE,
    "gates.agreementSameWeightsExpected": SHARE,
    "gates.accuracy": SHARE,
    "gates.errorRate": SHARE,
    "gates.latency": {"type": "number", "minimum": 0},
    "gates.memory": {"type": "number", "minimum": 0},
    "rollout.header": {"pattern": "^[A-Za-z0-9-]*$"},
    "gpu.resourceClaims": OBJECTS,
    "extraEnvFrom": OBJECTS,
    "extraContainers": OBJECTS,
    "extraInitContainers": OBJECTS,
    "extraObjects": {"type": "array", "items": {"type": ["object", "string"]}},
    "revisionHistoryLimit": {"type": "integer", "minimum": 0},
    "minReadySeconds": {"type": "integer", "minimum": 0},
    "unreachableSeconds": {"type": "integer", "minimum": 0},
    "progressDeadlineSeconds": COUNT,
    "verticalPodAutoscaler.updateMode": {"enum": ["Off", "Initial", "Recreate", "InPlaceOrRecreate"]},
    "verticalPodAutoscaler.controlledResources": {
        "type": "array",
        "minItems": 1,
        "items": {"enum": ["cpu", "memory"]},
    },
    "minAllowed": QUANTITIES,
    "maxAllowed": QUANTITIES,
    "autoscaling.provider": {"enum": ["hpa", "keda", "external"]},
    "autoscaling.metric": {"enum": ["cpu", "inflight", "saturation"]},
    "autoscaling.minReplicas": {"type": "integer", "minimum": 0},
    "autoscaling.maxReplicas": COUNT,
    "autoscaling.target.cpu": COUNT,
    "autoscaling.target.inflight": {"type": "number", "exclusiveMinimum": 0},
    "autoscaling.target.saturation": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "autoscaling.behavior": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"scaleUp": OBJECT, "scaleDown": OBJECT},
    },
    "toZero.idleSeconds": {"type": "integer", "minimum": 10},
    "toZero.holdSeconds": {"type": "integer", "minimum": 1, "maximum": 600},
    "keda.pollingInterval": COUNT,
    "keda.fallbackReplicas": COUNT,
    "podDisruptionBudget.maxUnavailable": {"type": ["integer", "string"], "minimum": 1},
    "strategy": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"type": {"enum": ["RollingUpdate", "Recreate"]}, "rollingUpdate": OBJECT},
    },
    "shutdown.preStopSeconds": {"type": "integer", "minimum": 0},
    "shutdown.graceSeconds": COUNT,
    "probes.startup": PROBE,
    "probes.liveness": PROBE,
    "probes.readiness": PROBE,
    "rules.objective": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "labels": TEXTS,
    "annotations": TEXTS,
    "nodeSelector": TEXTS,
    "podLabels": TEXTS,
    "podAnnotations": TEXTS,
    "commonLabels": TEXTS,
    "commonAnnotations": TEXTS,
    "deploymentAnnotations": TEXTS,
    "podSecurityContext": OBJECT,
    "securityContext": OBJECT,
    "affinity": OBJECT,
}


# Settings whose default in the chart is another than the service's own.
SET_BY_THE_CHART = {
    "model": "what weights.source mounts",
    "sha256": "weights.sha256",
    "host": "0.0.0.0",  # noqa: S104
    "listen": "early, or ready with autoscaling.minReplicas 0",
    "allowedHosts": "any; the Service's names are added to what is given",
    "device": "auto, or cuda with gpu.enabled",
    "threads": "resources.limits.cpu, also when it is changed in place",
    "cacheDir": "/var/cache/pthserve",
    "apiKeys": "apiKeys.secret",
    "feedbackPeers": "all pods of the release, with feedback",
}


@dataclass(frozen=True)
class Value:
    """One key of values.yaml."""

    path: str
    comment: str
    default: Any

    @property
    def constraint(self) -> dict[str, Any] | None:
        """The longest of CONSTRAINTS' keys that this path ends with; None when there is none."""
        parts = self.path.split(".")
        ends = (".".join(parts[first:]) for first in range(len(parts)))
        return next((CONSTRAINTS[end] for end in ends if end in CONSTRAINTS), None)

    @property
    def leaf(self) -> bool:
        """Whether the key's value is set as a whole."""
        return not isinstance(self.default, dict) or self.constraint is not None or not self.default


def values(node: yaml.MappingNode | None = None, above: str = "") -> Iterator[Value]:
    """Every key of values.yaml, depth first, with the comment that stands right above it."""
    text = (CHART / "values.yaml").read_text()
    lines = text.splitlines()
    for key, value in (node or yaml.compose(text)).value:
        comment: list[str] = []
        for line in reversed(lines[: key.start_mark.line]):
            if not line.strip().startswith("#"):
                break
            comment.insert(0, line.strip().removeprefix("#").strip())
        default = yaml.safe_load(yaml.serialize(value))
        found = Value(f"{above}.{key.value}".lstrip("."), " ".join(comment), default)
        yield found
        if not found.leaf:
            yield from values(value, found.path)


def _camel(name: str) -> str:
    return re.sub("_(.)", lambda match: match[1].upper(), name)


def settings_schema() -> dict[str, Any]:
    """The service's own settings, in camel case, closed."""
    properties = {}
    fields = Settings.model_json_schema()["properties"]
    for name, field in ((name, fields[name]) for name in Settings.in_order()):
        kind = next((kind for kind in field.get("anyOf", ()) if kind["type"] != "null"), {})
        kept = {
            key: value for key, value in {**field, **kind}.items() if key not in {"anyOf", "title", "format"}
        }
        if kept.get("default", ...) is None:
            del kept["default"]
        if kept.get("maximum") == 65535:
            kept["minimum"] = 1  # a port must be known to be published
        properties[_camel(name)] = kept
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _typed(value: Value) -> dict[str, Any]:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    found = value.constraint or (
        OBJECTS if isinstance(value.default, list) else {"type": kinds[type(value.default)]}
    )
    return found if "type" in found or "enum" in found else {"type": "string", **found}


def schema() -> str:
    """values.schema.json: closed wherever Kubernetes does not say itself what may stand there."""
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart pthserve",
        "type": "object",
        "additionalProperties": False,
        "properties": {"global": OBJECT},
    }
    for value in values():
        *above, name = value.path.split(".")
        parent = root
        for part in above:
            parent = parent["properties"][part]
        if value.path == "settings":
            found = settings_schema()
        elif above == ["settings"]:
            continue
        elif value.leaf:
            found = _typed(value)
        else:
            found = {"type": "object", "additionalProperties": False, "properties": {}}
        parent["properties"][name] = {**({"description": value.comment} if value.comment else {}), **found}
    return json.dumps(root, indent=2) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(value: object) -> str:
    if value in ("", None):
        return ""
    return _cell(f"`{value if isinstance(value, str) else json.dumps(value)}`")


def _table(rows: list[Value]) -> str:
    lines = ["| value | default | what it does |", "|---|---|---|"]
    lines += [f"| `{row.path}` | {_code(row.default)} | {_cell(row.comment)} |" for row in rows]
    return "\n".join(lines)


def readme() -> str:
    """The chart's README: an introduction and a table a group of values."""
    everything = list(values())
    alone = [value for value in everything if "." not in value.path and value.leaf]
    groups = [value for value in everything if "." not in value.path and not value.leaf]
    parts = [INTRODUCTION, "## The pods\n\n" + _table(alone)]
    for group in groups:
        leaves = [value for value in everything if value.path.startswith(f"{group.path}.") and value.leaf]
        if group.path == "settings":
            given = {value.path.removeprefix("settings."): value.default for value in leaves}
            leaves = [
                Value(
                    f"settings.{name}",
                    field["description"],
                    given.get(name, SET_BY_THE_CHART.get(name, field.get("default"))),
                )
                for name, field in settings_schema()["properties"].items()
            ]
        parts.append(f"## {group.path}\n\n{group.comment}\n\n{_table(leaves)}")
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
# pthserve's Helm chart

Serves a PyTorch image classifier over HTTP. For Helm 3 and 4, and Kubernetes 1.30 or newer.

    helm install cats charts/pthserve
    helm test cats

With no values it serves the demo, an ImageNet model that is in the image. To serve your own:

    helm install cats charts/pthserve --set weights.source=pvc \\
      --set weights.pvc.existingClaim=models --set weights.file=resnet18.pth

`k8s/examples/` has values for a laptop, production on CPUs, a GPU, KEDA, a claim and the Gateway API.
Behind an ingress or a gateway, `settings.trustedProxies` names its addresses, so that
`settings.rateLimit` counts clients and not the proxy; `settings.allowedHosts` lists the host names that are
answered to, and `settings.corsOrigins` the other sites whose pages may call the service. See "Behind an
ingress or a gateway" in `docs/operations.md`.

`values.schema.json` refuses a value that is not in the tables below, and the chart refuses combinations that
cannot work, each with a sentence that says what to do.

This file is generated from `values.yaml` by `charts/generate.py`."""


def manifests() -> str:
    """The chart with its default values, without what only Helm needs."""
    rendered = subprocess.run(  # noqa: S603
        ["helm", "template", "pthserve", str(CHART), "--kube-version", "1.37.0", "--skip-tests"],  # noqa: S607
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    documents = [
        "\n".join(
            line
            for line in document.strip().splitlines()
            if not re.match(
                r"# Source:|\s+(helm\.sh/chart|app\.kubernetes\.io/managed-by):|  namespace: default$", line
            )
        )
        for document in re.split(r"^---$", rendered, flags=re.MULTILINE)
        if document.strip() and "component: test" not in document
    ]
    ordered = sorted(documents, key=lambda document: re.findall(r"^kind: .+", document, re.MULTILINE))
    return (
        "# The chart with its default values. Generated by charts/generate.py.\n"
        + "\n---\n".join(ordered)
        + "\n"
    )


GENERATED: dict[Path, Callable[[], str]] = {
    CHART / "values.schema.json": schema,
    CHART / "README.md": readme,
    **{CHART / "dashboards" / f"{name}.json": build for name, build in dashboards.DASHBOARDS.items()},
    ROOT / "k8s" / "manifests" / "pthserve.yaml": manifests,
}

if __name__ == "__main__":
    for path, content in GENERATED.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content())
